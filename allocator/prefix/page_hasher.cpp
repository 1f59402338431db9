#include "allocator/prefix/page_hasher.hpp"

#include <openssl/evp.h>
#define XXH_INLINE_ALL  // a call costs as much as a third of a page
#include <xxhash.h>

#include <cstring>

#include "core/check.hpp"

namespace kvmesh {
namespace {

constexpr std::uint8_t kTextType = 3, kBytesType = 2, kArrayType = 4;
constexpr std::size_t kSha256Bytes = 32;

/// Writes the head of a CBOR item in its shortest form. Returns the end.
inline std::uint8_t* put_head(std::uint8_t* out, unsigned major, std::uint64_t value) {
  const auto type = static_cast<std::uint8_t>(major << 5);
  if (value < 24) {
    *out++ = static_cast<std::uint8_t>(type | value);
    return out;
  }
  const int size_log2 = value < 0x100 ? 0 : value < 0x1'0000 ? 1 : value < 0x1'0000'0000 ? 2 : 3;
  *out++ = static_cast<std::uint8_t>(type | (24 + size_log2));
  for (int shift = (8 << size_log2) - 8; shift >= 0; shift -= 8)
    *out++ = static_cast<std::uint8_t>(value >> shift);
  return out;
}

/// Writes a token as put_head(out, 0, token) does; may write 5 bytes. Has no loop: sixteen of them
/// are most of what a page costs beside its SHA-256.
inline std::uint8_t* put_token(std::uint8_t* out, std::uint32_t token) {
  if (token < 0x100) return put_head(out, 0, token);
  // Two or four bytes: no branch, since one in two would be mispredicted.
  const unsigned is_wide = token > 0xFFFF ? 1 : 0;
  *out = static_cast<std::uint8_t>(25 + is_wide);
  const std::uint32_t value = __builtin_bswap32(token << (16 - 16 * is_wide));
  std::memcpy(out + 1, &value, sizeof value);
  return out + 3 + 2 * is_wide;
}

/// XXH3-128 hashes in registers.
struct Halves {
  std::uint64_t low = 0, high = 0;
};

Halves halves_of(const PageHash& hash) {
  Halves halves;
  std::memcpy(&halves.low, hash.bytes.data(), 8);
  std::memcpy(&halves.high, hash.bytes.data() + 8, 8);
  return halves;
}

void put(const Halves& halves, PageHash& hash) {
  std::memcpy(hash.bytes.data(), &halves.low, 8);
  std::memcpy(hash.bytes.data() + 8, &halves.high, 8);
}

/// The tokens are hashed where they are, with the low half of the parent as seed; the high half is
/// added to the result, so that it depends on all 128 bits.
inline Halves xxh3_page(const Halves& parent, const std::int32_t* tokens, std::size_t bytes) {
  const XXH128_hash_t value = XXH3_128bits_withSeed(tokens, bytes, parent.low);
  return {value.low64, value.high64 + parent.high};
}

}  // namespace

std::uint64_t event_id(const PageHash& hash) {
  std::uint64_t id = 0;
  for (std::size_t i = 24; i < 32; ++i) id = id << 8 | hash.bytes[i];
  return id;
}

void CborWriter::head(unsigned major, std::uint64_t value) {
  std::uint8_t bytes[9];
  out_.insert(out_.end(), bytes, put_head(bytes, major, value));
}

void CborWriter::text(std::string_view value) {
  head(kTextType, value.size());
  out_.insert(out_.end(), value.begin(), value.end());
}

void CborWriter::bytes(std::span<const std::uint8_t> value) {
  head(kBytesType, value.size());
  out_.insert(out_.end(), value.begin(), value.end());
}

void CborWriter::integer(std::int64_t value) {
  head(value < 0 ? 1 : 0, static_cast<std::uint64_t>(value < 0 ? -1 - value : value));
}

struct PageHasher::Sha256 {
  Sha256() : algorithm(EVP_MD_fetch(nullptr, "SHA256", nullptr)), context(EVP_MD_CTX_new()) {
    if (algorithm == nullptr || context == nullptr)
      throw Unsupported("prefix: this OpenSSL has no SHA-256");
  }
  ~Sha256() {
    EVP_MD_CTX_free(context);
    EVP_MD_free(algorithm);
  }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  EVP_MD* algorithm;
  EVP_MD_CTX* context;
};

PageHasher::PageHasher(PrefixHash kind) : kind_(kind) {
  if (kind == PrefixHash::kSha256Cbor) sha256_ = std::make_unique<Sha256>();
}
PageHasher::~PageHasher() = default;
PageHasher::PageHasher(PageHasher&&) noexcept = default;
PageHasher& PageHasher::operator=(PageHasher&&) noexcept = default;

PageHash PageHasher::digest(std::span<const std::uint8_t> bytes) {
  PageHash hash;
  if (kind_ == PrefixHash::kXxh3) {
    const XXH128_hash_t value = XXH3_128bits(bytes.data(), bytes.size());
    std::memcpy(hash.bytes.data(), &value.low64, 8);
    std::memcpy(hash.bytes.data() + 8, &value.high64, 8);
    return hash;
  }
  const bool ok = EVP_DigestInit_ex2(sha256_->context, sha256_->algorithm, nullptr) == 1 &&
                  EVP_DigestUpdate(sha256_->context, bytes.data(), bytes.size()) == 1 &&
                  EVP_DigestFinal_ex(sha256_->context, hash.bytes.data(), nullptr) == 1;
  if (!ok) throw Error("prefix: OpenSSL failed to compute a SHA-256");
  return hash;
}

PageHash PageHasher::root(std::string_view seed) {
  buffer_.clear();
  CborWriter(buffer_).text(seed.empty() ? "vllm-none-hash" : seed);
  return digest(buffer_);
}

PageHash PageHasher::page(const PageHash& parent, std::span<const std::int32_t> tokens,
                          std::span<const std::uint8_t> extras) {
  if (kind_ == PrefixHash::kXxh3) {
    Halves seed = halves_of(parent);
    if (!extras.empty()) seed.low = XXH3_64bits_withSeed(extras.data(), extras.size(), seed.low);
    PageHash hash;
    put(xxh3_page(seed, tokens.data(), tokens.size_bytes()), hash);
    return hash;
  }
  // Heads take at most 9 bytes each; a token at most 5.
  buffer_.resize(1 + 9 + kSha256Bytes + 9 + 5 * tokens.size() + extras.size() + 1);
  std::uint8_t* out = put_head(buffer_.data(), kArrayType, 3);
  out = put_head(out, kBytesType, kSha256Bytes);
  out = static_cast<std::uint8_t*>(std::memcpy(out, parent.bytes.data(), kSha256Bytes)) +
        kSha256Bytes;
  out = put_head(out, kArrayType, tokens.size());
  for (const std::int32_t token : tokens) out = put_token(out, static_cast<std::uint32_t>(token));
  if (extras.empty()) {
    *out++ = 0xF6;  // null
  } else {
    std::memcpy(out, extras.data(), extras.size());
    out += extras.size();
  }
  return digest({buffer_.data(), out});
}

void PageHasher::run(const PageHash& parent, std::span<const std::int32_t> tokens,
                     std::span<PageHash> out) {
  if (out.empty()) return;
  const std::size_t page_size = tokens.size() / out.size();
  if (kind_ == PrefixHash::kXxh3) {
    Halves halves = halves_of(parent);
    const std::int32_t* page = tokens.data();
    for (PageHash& hash : out) {
      halves = xxh3_page(halves, page, page_size * sizeof *page);
      put(halves, hash);
      page += page_size;
    }
    return;
  }
  const PageHash* before = &parent;
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = page(*before, tokens.subspan(i * page_size, page_size), {});
    before = &out[i];
  }
}

std::vector<std::uint8_t> extra_keys(const PrefixExtras& extras, std::int64_t first,
                                     std::int64_t tokens) {
  std::vector<std::uint8_t> keys;
  CborWriter out(keys);
  std::uint64_t count = 0;
  if (extras.adapter) {
    ++count;
    out.array(3);
    out.text("lora");
    out.text(extras.adapter->name);
    out.text(extras.adapter->path);
  }
  for (const PrefixExtras::Item& item : extras.items) {
    if (item.first >= first + tokens || item.first + item.tokens <= first) continue;
    ++count;
    out.array(3);
    out.text("mm");
    out.text(item.id);
    out.integer(item.first - first);
  }
  if (first == 0 && !extras.salt.empty()) {
    ++count;
    out.array(2);
    out.text("cache_salt");
    out.text(extras.salt);
  }
  if (const auto page = static_cast<std::size_t>(first / tokens);
      page < extras.prompt_embeds.size()) {
    ++count;
    out.array(2);
    out.text("prompt_embeds");
    out.bytes(extras.prompt_embeds[page]);
  }
  if (count == 0) return {};
  std::vector<std::uint8_t> all;
  CborWriter(all).array(count);
  all.insert(all.end(), keys.begin(), keys.end());
  return all;
}

std::string_view name(PrefixHash hash) {
  switch (hash) {
    case PrefixHash::kSha256Cbor:
      return "sha256_cbor";
    case PrefixHash::kXxh3:
      return "xxh3";
  }
  return "unknown";
}

}  // namespace kvmesh
