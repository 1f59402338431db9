#include "runtime/streams/sequence_format.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/crc32c.hpp"
#include "runtime/memory/layer_groups.hpp"

namespace kvmesh {
namespace {

static_assert(std::endian::native == std::endian::little, "streams are little-endian");

using Reason = StreamError::Reason;

constexpr std::array<char, 8> kMagic{'K', 'V', 'M', 'E', 'S', 'H', '\x1A', '\n'};
constexpr std::array<char, 8> kEnd{'K', 'V', 'M', 'E', 'N', 'D', '\x1A', '\n'};
constexpr std::size_t kPreambleBytes = 16;  // magic, version, size of the fields
constexpr std::size_t kNameBytes = 16;
constexpr std::size_t kPieceBytes = 1 << 20;
// More than any sequence has; so products of the header's numbers fit in 63 bits.
constexpr std::uint32_t kMostHeaderBytes = 1u << 30;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;
constexpr std::int64_t kMostRecordBytes = std::int64_t{1} << 32;

[[noreturn]] void corrupt(const std::string& what) {
  throw StreamError(Reason::kCorrupt, "sequence stream: " + what);
}

class Writer {
 public:
  template <class T>
  void put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    put_all(std::span(&value, 1));
  }
  template <class T>
  void put_all(std::span<const T> values) {
    const auto raw = std::as_bytes(values);
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  }
  void put_name(std::string_view name) {
    std::array<char, kNameBytes> padded{};
    std::copy_n(name.begin(), std::min(name.size(), kNameBytes), padded.begin());
    put(padded);
  }
  std::vector<std::byte> bytes;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <class T>
  T take() {
    T value;
    copy(&value, sizeof value);
    return value;
  }
  /// Refuses a count that the bytes cannot have before it takes memory for it.
  template <class T>
  std::vector<T> take_all(std::uint64_t count) {
    if (count > bytes_.size() / sizeof(T)) corrupt("a list in the header is too long");
    std::vector<T> values(static_cast<std::size_t>(count));
    copy(values.data(), values.size() * sizeof(T));
    return values;
  }
  std::string take_name() {
    const auto padded = take<std::array<char, kNameBytes>>();
    const auto end = std::ranges::find(padded, '\0');
    return {padded.begin(), end};
  }
  bool at_end() const { return bytes_.empty(); }

 private:
  void copy(void* to, std::size_t size) {
    if (size > bytes_.size()) corrupt("the header is too short for what it lists");
    if (size > 0) std::memcpy(to, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
  }
  std::span<const std::byte> bytes_;
};

std::int64_t checked(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value < least || value > most) corrupt(fmt::format("{} is {}", name, value));
  return value;
}

Dtype checked_dtype(const std::string& text) {
  for (const Dtype dtype : kAllDtypes)
    if (text == name(dtype)) return dtype;
  corrupt("an element type of another program");
}

void put_scales(Writer& out, const std::vector<float>& scales) {
  out.put(static_cast<std::uint32_t>(scales.size()));
  out.put_all(std::span<const float>(scales));
}

void put_group(Writer& out, const SequenceHeader::Group& group) {
  out.put(static_cast<std::uint64_t>(group.layers.size()));
  out.put_all(std::span<const std::int32_t>(group.layers));
  out.put(std::int32_t{group.heads});
  out.put(group.first);
  put_scales(out, group.k_scales);
  put_scales(out, group.v_scales);
  out.put(static_cast<std::uint32_t>(group.planes.size()));
  for (const SequenceHeader::Plane& plane : group.planes) {
    out.put_name(plane.name);
    out.put_name(name(plane.dtype));
    out.put(std::int32_t{plane.elements});
  }
}

void put_fields(Writer& out, const SequenceHeader& header) {
  out.put(header.tokens);
  out.put(static_cast<std::uint32_t>(header.groups.size()));
  for (const SequenceHeader::Group& group : header.groups) put_group(out, group);
  out.put(static_cast<std::uint64_t>(header.token_ids.size()));
  out.put_all(std::span<const std::int32_t>(header.token_ids));
  out.put(static_cast<std::uint32_t>(header.hash));
  out.put(std::int32_t{header.hash_page_size});
  out.put(static_cast<std::uint64_t>(header.hashes.size()));
  out.put_all(std::span<const PageHash>(header.hashes));
}

/// None, one, or one for each head.
std::vector<float> take_scales(Reader& in, int heads) {
  std::vector<float> scales = in.take_all<float>(in.take<std::uint32_t>());
  if (scales.size() > 1 && std::ssize(scales) != heads)
    corrupt(fmt::format("{} scales for {} heads", scales.size(), heads));
  return scales;
}

SequenceHeader::Group take_group(Reader& in, std::int64_t tokens) {
  SequenceHeader::Group group;
  group.layers = in.take_all<std::int32_t>(in.take<std::uint64_t>());
  checked("layers", std::ssize(group.layers), 1, kMostLayers);
  for (const std::int32_t layer : group.layers) checked("a layer", layer, 0, kMostLayers - 1);
  group.heads = static_cast<int>(checked("heads", in.take<std::int32_t>(), 1, 1 << 16));
  group.first = checked("the first token", in.take<std::int64_t>(), 0, tokens);
  group.k_scales = take_scales(in, group.heads);
  group.v_scales = take_scales(in, group.heads);
  const std::int64_t planes =
      checked("planes", in.take<std::uint32_t>(), 1, std::int64_t{PlaneList<int>::kMost});
  for (std::int64_t i = 0; i < planes; ++i) {
    SequenceHeader::Plane& plane = group.planes.emplace_back();
    plane.name = in.take_name();
    plane.dtype = checked_dtype(in.take_name());
    plane.elements = static_cast<int>(checked("elements", in.take<std::int32_t>(), 1, 1 << 28));
  }
  if (row_bytes(group) >
      kMostRecordBytes / std::min(kRecordTokens, tokens - group.first + 1) / group.heads)
    corrupt("a token of a layer is too large");
  return group;
}

SequenceHeader fields_of(std::span<const std::byte> bytes) {
  Reader in(bytes);
  SequenceHeader header;
  header.tokens = checked("tokens", in.take<std::int64_t>(), 0, kMostTokens);
  const std::int64_t groups = checked("groups", in.take<std::uint32_t>(), 1, kMostLayers);
  for (std::int64_t i = 0; i < groups; ++i) header.groups.push_back(take_group(in, header.tokens));
  header.token_ids = in.take_all<std::int32_t>(in.take<std::uint64_t>());
  if (!header.token_ids.empty() && std::ssize(header.token_ids) != header.tokens)
    corrupt("it has another number of token ids than of tokens");
  if (std::ranges::any_of(header.token_ids, [](std::int32_t id) { return id < 0; }))
    corrupt("a token id is negative");
  header.hash = static_cast<PrefixHash>(checked("the hash", in.take<std::uint32_t>(), 0, 1));
  header.hash_page_size =
      static_cast<int>(checked("hash_page_size", in.take<std::int32_t>(), 1, 1 << 30));
  header.hashes = in.take_all<PageHash>(in.take<std::uint64_t>());
  if (std::ssize(header.hashes) > std::ssize(header.token_ids) / header.hash_page_size)
    corrupt("it has more hashes than full pages");
  if (!in.at_end()) corrupt("the header is longer than what it lists");
  return header;
}

// Reads `size` bytes in pieces, so that a wrong size costs no memory.
void read_in_pieces(ByteSource& source, std::size_t size, std::vector<std::byte>& into) {
  while (size > 0) {
    const std::size_t piece = std::min(size, kPieceBytes);
    into.resize(into.size() + piece);
    source.read(std::span(into).last(piece));
    size -= piece;
  }
}

}  // namespace

std::uint32_t read_checksum(ByteSource& source) {
  std::uint32_t sum = 0;
  source.read(std::as_writable_bytes(std::span(&sum, 1)));
  return sum;
}

std::vector<std::byte> encode(const SequenceHeader& header) {
  Writer fields, out;
  put_fields(fields, header);
  out.put(kMagic);
  out.put(SequenceHeader::kVersion);
  out.put(static_cast<std::uint32_t>(fields.bytes.size()));
  out.put_all(std::span<const std::byte>(fields.bytes));
  out.put(crc32c(out.bytes));
  return std::move(out.bytes);
}

SequenceHeader read_header(ByteSource& source) {
  std::vector<std::byte> bytes;
  read_in_pieces(source, kPreambleBytes, bytes);
  Reader start(bytes);
  if (start.take<std::array<char, 8>>() != kMagic)
    throw StreamError(Reason::kForeign, "sequence stream: this is not a stream of kvmesh");
  const auto version = start.take<std::uint32_t>();
  if (version != SequenceHeader::kVersion) {
    throw StreamError(Reason::kForeign,
                      fmt::format("sequence stream: version {}, where this build knows version {}",
                                  version, SequenceHeader::kVersion));
  }
  const auto size = start.take<std::uint32_t>();
  if (size > kMostHeaderBytes) corrupt("the header is too long");
  read_in_pieces(source, size, bytes);
  if (read_checksum(source) != crc32c(bytes)) corrupt("the header's checksum is wrong");
  return fields_of(std::span(bytes).subspan(kPreambleBytes));
}

std::int64_t row_bytes(const SequenceHeader::Group& group) {
  std::int64_t bytes = 0;
  for (const SequenceHeader::Plane& plane : group.planes)
    bytes += plane.elements * static_cast<std::int64_t>(size_bytes(plane.dtype));
  return bytes;
}

std::size_t record_bytes(const SequenceHeader::Group& group, std::int64_t tokens) {
  return static_cast<std::size_t>(row_bytes(group) * group.heads * tokens);
}

std::size_t bytes_after(const SequenceHeader& header) {
  std::size_t bytes = sizeof kEnd;
  for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
    bytes += record_bytes(header.groups[place.group], tokens) + sizeof(std::uint32_t);
  });
  return bytes;
}

std::uint32_t checksum_before(const RecordPlace& place) {
  Writer out;
  out.put(place.first);
  out.put(std::int32_t{place.layer});
  return crc32c(out.bytes);
}

std::span<const std::byte> take(ByteSource& source, std::size_t size_bytes,
                                std::vector<std::byte>& buffer) {
  const std::span<const std::byte> bytes = source.view(size_bytes);
  if (!bytes.empty()) return bytes;
  buffer.resize(size_bytes);
  source.read(buffer);
  return buffer;
}

void check_record(const RecordPlace& place, std::uint32_t found, std::uint32_t written) {
  if (found == written) return;
  corrupt(fmt::format("the tokens from {} on of layer {} have checksum {:08x} instead of {:08x}",
                      place.first, place.layer, found, written));
}

void write_end(ByteSink& sink) {
  sink.write(std::as_bytes(std::span(kEnd)));
  sink.finish();
}

void read_end(ByteSource& source) {
  std::array<char, 8> mark{};
  source.read(std::as_writable_bytes(std::span(mark)));
  if (mark != kEnd) corrupt("it has no end mark");
  source.finish();
}

SequenceHeader inspect_sequence(ByteSource& source) {
  const SequenceHeader header = read_header(source);
  std::vector<std::byte> buffer;
  for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
    std::uint32_t sum = checksum_before(place);
    std::size_t left = record_bytes(header.groups[place.group], tokens);
    while (left > 0) {
      const auto piece = take(source, std::min(left, kPieceBytes), buffer);
      sum = crc32c(piece, sum);
      left -= piece.size();
    }
    check_record(place, sum, read_checksum(source));
  });
  read_end(source);
  return header;
}

}  // namespace kvmesh
