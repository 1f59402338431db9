// Any bytes as the fields of an exported sequence's header, or as a whole stream: read, or refused
// as StreamError. The first byte says whether magic, version, size and checksum are put around the
// fields, as a fuzzer finds no checksum; and, with its second bit, whether records and end mark
// with right checksums follow.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "core/crc32c.hpp"
#include "runtime/streams/sequence_format.hpp"
#include "tests/fuzz/target.hpp"

namespace {

std::vector<std::byte> framed(std::span<const std::byte> fields) {
  std::vector<std::byte> stream = kvmesh::encode(kvmesh::SequenceHeader{});
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

/// The bytes of all records; more than `most` if they are more.
std::size_t bytes_of_records(const kvmesh::SequenceHeader& header, std::size_t most) {
  std::size_t bytes = 0;
  for (const kvmesh::SequenceHeader::Group& group : header.groups) {
    for (std::int64_t at = group.first; at < header.tokens && bytes <= most;
         at += kvmesh::kRecordTokens) {
      const auto tokens = std::min(kvmesh::kRecordTokens, header.tokens - at);
      if (kvmesh::record_bytes(group, tokens) > std::size_t{1} << 32) abort();
      bytes += group.layers.size() * (kvmesh::record_bytes(group, tokens) + 4);
    }
  }
  return bytes;
}

/// The stream of a header with records of one byte.
void check_records(const kvmesh::SequenceHeader& header) {
  kvmesh::MemorySink sink;
  sink.write(kvmesh::encode(header));
  std::vector<std::byte> record;
  kvmesh::for_each_record(header, [&](const kvmesh::RecordPlace& place, std::int64_t tokens) {
    record.assign(kvmesh::record_bytes(header.groups[place.group], tokens), std::byte{3});
    const std::uint32_t sum = kvmesh::crc32c(record, kvmesh::checksum_before(place));
    sink.write(record);
    sink.write(std::as_bytes(std::span(&sum, 1)));
  });
  kvmesh::write_end(sink);
  kvmesh::MemorySource source(sink.bytes());
  if (kvmesh::encode(kvmesh::inspect_sequence(source)) != kvmesh::encode(header)) abort();
}

/// A header that was read is written as the bytes that it came from.
void check(std::span<const std::byte> stream, bool adds_records) {
  kvmesh::MemorySource source(stream);
  const kvmesh::SequenceHeader header = kvmesh::read_header(source);
  const std::vector<std::byte> again = kvmesh::encode(header);
  kvmesh::MemorySource second(again);
  if (kvmesh::encode(kvmesh::read_header(second)) != again || again.size() > stream.size()) abort();
  constexpr std::size_t kMost = 1 << 16;
  const bool is_small = bytes_of_records(header, kMost) <= kMost;
  if (adds_records && is_small) check_records(header);
  if (adds_records || !is_small) return;
  kvmesh::MemorySource whole(stream);
  kvmesh::inspect_sequence(whole);
}

}  // namespace

bool reads(std::span<const std::uint8_t> data) {
  if (data.empty()) return false;
  const auto bytes = std::as_bytes(data).subspan(1);
  try {
    const bool adds_records = data[0] / 2 % 2 == 1;
    data[0] % 2 == 0 ? check(framed(bytes), adds_records) : check(bytes, adds_records);
  } catch (const kvmesh::StreamError&) {
    return false;
  }
  return true;
}
