// Any bytes as the fields of an exported sequence's header: read, or refused as StreamError. The
// first byte says whether magic, version, size and checksum are put around them, as a fuzzer finds
// no checksum; without, the bytes are the whole stream.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "core/crc32c.hpp"
#include "runtime/memory/sequence_format.hpp"

namespace {

std::vector<std::byte> framed(std::span<const std::byte> fields) {
  std::vector<std::byte> stream = kvmesh::encode({.groups = {}});
  stream.resize(12);  // magic and version
  const auto put = [&](std::uint32_t word) {
    const std::span<const std::byte> bytes = std::as_bytes(std::span(&word, 1));
    stream.insert(stream.end(), bytes.begin(), bytes.end());
  };
  put(static_cast<std::uint32_t>(fields.size()));
  stream.insert(stream.end(), fields.begin(), fields.end());
  put(kvmesh::crc32c(stream));
  return stream;
}

/// A header that was read is written as the bytes that it came from.
void check(std::span<const std::byte> stream) {
  kvmesh::MemorySource source(stream);
  const kvmesh::SequenceHeader header = kvmesh::read_header(source);
  const std::vector<std::byte> again = kvmesh::encode(header);
  kvmesh::MemorySource second(again);
  if (kvmesh::encode(kvmesh::read_header(second)) != again || again.size() > stream.size()) abort();
  kvmesh::for_each_record(header, [&](const kvmesh::RecordPlace& place, std::int64_t tokens) {
    if (place.first > header.groups[place.group].first + kvmesh::kRecordTokens) return;
    if (kvmesh::record_bytes(header.groups[place.group], tokens) > std::size_t{1} << 32) abort();
  });
  if (header.tokens == 0) kvmesh::read_end(source);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(1);
  try {
    data[0] % 2 == 0 ? check(framed(bytes)) : check(bytes);
  } catch (const kvmesh::StreamError&) {
  }
  return 0;
}
