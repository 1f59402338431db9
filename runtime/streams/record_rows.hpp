// The rows of a stream's record: where pages have them, and one loop over them each way, in which
// they are copied and summed.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "core/bulk_copy.hpp"
#include "core/crc32c.hpp"
#include "runtime/memory/page_mover.hpp"
#include "runtime/streams/sequence_format.hpp"

namespace kvmesh {

/// Tokens of a record that lie on one page.
struct RecordRun {
  PageRank rank{};         ///< which holds the page
  std::int64_t token = 0;  ///< the first, in the record
  std::int64_t tokens = 0;
  std::int32_t page = 0;        ///< the page's index in that rank's pools
  std::int32_t page_token = 0;  ///< the first token, in the page
};

/// By the bytes of the second piece.
using Crc32cJoins = std::map<std::size_t, Crc32cJoin>;

class RecordRows {
 public:
  /// `runs` are in the order of the tokens. REQUIRES: they and `group` outlive it.
  RecordRows(const SequenceHeader::Group& group, std::int64_t tokens,
             std::span<const RecordRun> runs, int head_parallel);

  /// Says where the rows of a rank's heads lie: [runs of the page rank][planes], of the first head.
  void place(PageRank rank, int head_rank, std::span<const RowPlace> rows);

  /// Copies all rows into the record. Returns the checksum of the record, which continues `before`.
  /// REQUIRES: all rows have been placed.
  std::uint32_t gather(std::byte* record, const BulkCopy& copy, std::uint32_t before,
                       Crc32cJoins& joins) const;
  /// Copies a record that `source` gives to the rows that have been placed, by way of `buffer` if
  /// the source does not show its bytes. Continues `sum` by the record's checksum; null: computes
  /// none.
  /// @throws StreamError.
  void scatter(ByteSource& source, std::vector<std::byte>& buffer, const BulkCopy& copy,
               std::uint32_t* sum) const;

 private:
  std::uint32_t joined(std::span<const std::uint32_t> sums, std::uint32_t before,
                       Crc32cJoins& joins) const;
  std::size_t planes() const { return row_bytes_.size(); }
  std::size_t width(std::size_t plane, std::size_t run) const {
    return row_bytes_[plane] * static_cast<std::size_t>(runs_[run].tokens);
  }
  const RowPlace& at(std::size_t head_rank, std::size_t run, std::size_t plane) const {
    return places_[(head_rank * runs_.size() + run) * planes() + plane];
  }

  std::span<const RecordRun> runs_;
  std::size_t heads_, head_ranks_, heads_of_rank_, tokens_;
  std::vector<std::size_t> row_bytes_;  // [planes] of a token and head
  std::vector<RowPlace> places_;        // [head ranks][runs][planes]
};

}  // namespace kvmesh
