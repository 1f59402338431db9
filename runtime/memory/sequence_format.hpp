// The bytes of an exported sequence.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kvmesh/sequence_stream.hpp"

namespace kvmesh {

/// Tokens of a record. No multiple of pages, which the stream does not know.
inline constexpr std::int64_t kRecordTokens = 256;

/// The whole header: magic, version, size, fields, checksum.
std::vector<std::byte> encode(const SequenceHeader& header);
/// Reads a header. Asks for no more memory than the source has bytes.
/// @throws StreamError.
SequenceHeader read_header(ByteSource& source);

/// Bytes of one token of one head in all planes.
std::int64_t row_bytes(const SequenceHeader::Group& group);
/// Bytes of a record of `tokens` tokens, without its checksum.
std::size_t record_bytes(const SequenceHeader::Group& group, std::int64_t tokens);
/// Where plane `plane` begins in it.
std::size_t plane_offset(const SequenceHeader::Group& group, std::int64_t tokens,
                         std::size_t plane);

/// A record's place: its checksum starts with token and layer, so that records cannot be exchanged.
struct RecordPlace {
  std::int64_t first = 0;  ///< token
  int layer = 0;
  std::size_t group = 0;
};
std::uint32_t checksum_before(const RecordPlace& place);

/// Calls `body(place, tokens)` for all records in the stream's order.
template <class Body>
void for_each_record(const SequenceHeader& header, const Body& body) {
  for (std::size_t g = 0; g < header.groups.size(); ++g) {
    const SequenceHeader::Group& group = header.groups[g];
    for (std::int64_t first = group.first; first < header.tokens; first += kRecordTokens)
      for (const int layer : group.layers)
        body(RecordPlace{first, layer, g}, std::min(kRecordTokens, header.tokens - first));
  }
}

void write_record(ByteSink& sink, const RecordPlace& place, std::span<const std::byte> record);
void read_record(ByteSource& source, const RecordPlace& place, std::span<std::byte> record);
void write_end(ByteSink& sink);
void read_end(ByteSource& source);

}  // namespace kvmesh
