// Reads and writes the parts of a sequence's stream (kvmesh/sequence_stream.hpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kvmesh/sequence_stream.hpp"

namespace kvmesh {

/// Tokens per record, whatever the page size, which a stream does not have.
inline constexpr std::int64_t kRecordTokens = 256;

/// Returns the whole header: magic, version, size, fields, checksum.
std::vector<std::byte> encode(const SequenceHeader& header);
/// Reads a header and checks its numbers. Takes memory in proportion to the bytes that the source
/// has, whatever sizes it claims.
/// @throws StreamError.
SequenceHeader read_header(ByteSource& source);

/// Returns the bytes of one token of one head in all planes.
std::int64_t row_bytes(const SequenceHeader::Group& group);
/// Returns the bytes of a record of `tokens` tokens, without its checksum.
std::size_t record_bytes(const SequenceHeader::Group& group, std::int64_t tokens);
/// Returns the bytes of all records and of what follows them: the stream's after its header.
std::size_t bytes_after(const SequenceHeader& header);

struct RecordPlace {
  std::int64_t first = 0;  ///< token
  int layer = 0;
  std::size_t group = 0;  ///< index in SequenceHeader::groups
};
/// Returns the checksum of a record's place, which that of its bytes continues: so records that
/// were exchanged do not fit.
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

/// Returns the source's next bytes, in its own memory or in `buffer`, until the next call.
/// @throws StreamError.
std::span<const std::byte> take(ByteSource& source, std::size_t size_bytes,
                                std::vector<std::byte>& buffer);
std::uint32_t read_checksum(ByteSource& source);
/// @throws StreamError (kCorrupt) if the checksum of a record's bytes is not the one written after
/// it.
void check_record(const RecordPlace& place, std::uint32_t found, std::uint32_t written);

/// Write and read the end mark, and finish the sink or the source.
/// @throws StreamError; reading kCorrupt if the mark is wrong.
void write_end(ByteSink& sink);
void read_end(ByteSource& source);

}  // namespace kvmesh
