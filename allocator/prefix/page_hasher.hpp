// Hashes pages of tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/prefix.hpp"

namespace kvmesh {

/// Appends canonical CBOR (RFC 8949) to a buffer.
class CborWriter {
 public:
  explicit CborWriter(std::vector<std::uint8_t>& out) : out_(out) {}
  void array(std::uint64_t size) { head(4, size); }
  void text(std::string_view value);
  void bytes(std::span<const std::uint8_t> value);
  void integer(std::int64_t value);
  void null() { out_.push_back(0xF6); }

 private:
  void head(unsigned major, std::uint64_t value);
  std::vector<std::uint8_t>& out_;
};

/// Computes hashes of pages. Keeps the library's state and a buffer: after the first page, hashing
/// allocates nothing.
class PageHasher {
 public:
  explicit PageHasher(PrefixHash kind);
  ~PageHasher();
  PageHasher(PageHasher&&) noexcept;
  PageHasher& operator=(PageHasher&&) noexcept;

  /// The parent of first pages. An empty `seed`: "vllm-none-hash".
  PageHash root(std::string_view seed);
  /// `extras` is the CBOR of the page's extra keys; empty if it has none. REQUIRES: no token is
  /// negative.
  PageHash page(const PageHash& parent, std::span<const std::int32_t> tokens,
                std::span<const std::uint8_t> extras);
  /// The hashes of consecutive pages without extra keys, `tokens` of out.size() pages. Faster than
  /// page by page: with XXH3 the parent stays in registers.
  void run(const PageHash& parent, std::span<const std::int32_t> tokens, std::span<PageHash> out);
  /// The SHA-256 or XXH3-128 of `bytes`.
  PageHash digest(std::span<const std::uint8_t> bytes);

 private:
  struct Sha256;
  PrefixHash kind_;
  std::unique_ptr<Sha256> sha256_;
  std::vector<std::uint8_t> buffer_;
};

/// The CBOR of the extra keys of page [first, first + tokens), in vLLM's order: adapter, items,
/// salt, embeddings. Empty if there are none.
std::vector<std::uint8_t> extra_keys(const PrefixExtras& extras, std::int64_t first,
                                     std::int64_t tokens);

}  // namespace kvmesh
