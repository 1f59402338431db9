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

/// The joins of checksums for all sizes that streams have needed.
class Crc32cJoins {
 public:
  const Crc32cJoin& of(std::size_t second_bytes) {
    return joins_.try_emplace(second_bytes, second_bytes).first->second;
  }

 private:
  std::map<std::size_t, Crc32cJoin> joins_;
};

/// Some rows of a record, by their numbers in some order.
struct RowRange {
  std::size_t begin = 0, end = 0;
};

/// A row has a run's tokens of one head in one plane. Threads may copy different rows at once.
class RecordRows {
 public:
  /// `runs` are in the order of the tokens. REQUIRES: they and `group` outlive it.
  RecordRows(const SequenceHeader::Group& group, const RecordPlace& place, std::int64_t tokens,
             std::span<const RecordRun> runs, int head_parallel);

  /// Sets where the rows of a rank's heads lie: [runs of the page rank][planes], of the first head.
  void place(PageRank rank, int head_rank, std::span<const RowPlace> rows);

  std::size_t count() const { return planes() * heads_ * runs_.size(); }
  /// Returns the bytes of the record, without its checksum.
  std::size_t size_bytes() const { return plane_begins_.back(); }
  /// Returns the checksum that the record's continues: of its place.
  std::uint32_t sum_before() const { return checksum_before(place_); }

  /// Copies rows into the record, and writes the checksum of each to `sums`, [count()] in the
  /// record's order. The rows are counted in the order of the pages: plane after plane, run after
  /// run, head after head. REQUIRES: they have been placed.
  void gather(RowRange rows, std::byte* record, const BulkCopy& copy,
              std::span<std::uint32_t> sums) const;
  /// Returns the record's checksum, from those of its rows.
  std::uint32_t joined(std::span<const std::uint32_t> sums, Crc32cJoins& joins) const;

  /// Copies rows that have been placed from the record, where they begin at `bytes`, and continues
  /// `sum` by the checksum of all; null: computes none. The rows are counted in the order of the
  /// record: plane after plane, head after head, run after run.
  void scatter(RowRange rows, const std::byte* bytes, const BulkCopy& copy,
               std::uint32_t* sum) const;
  /// Returns the bytes that the record has before a row of its order.
  std::size_t bytes_before(std::size_t row) const;
  /// Copies a record that `source` gives, piece by piece, by way of `buffer` if the source does not
  /// show its bytes. `sum` as above.
  /// @throws StreamError.
  void scatter(ByteSource& source, std::vector<std::byte>& buffer, const BulkCopy& copy,
               std::uint32_t* sum) const;

 private:
  struct Row {
    std::size_t plane, head, run;
  };
  std::size_t planes() const { return row_bytes_.size(); }
  std::size_t width(std::size_t plane, std::size_t run) const {
    return row_bytes_[plane] * static_cast<std::size_t>(runs_[run].tokens);
  }
  std::byte* data(const Row& row) const;
  std::size_t offset(const Row& row) const;

  RecordPlace place_;
  std::span<const RecordRun> runs_;
  std::size_t heads_, head_ranks_, heads_of_rank_, tokens_;
  std::vector<std::size_t> row_bytes_;     // [planes] of a token and head
  std::vector<std::size_t> plane_begins_;  // [planes] in the record, and its end
  std::vector<RowPlace> places_;           // [head ranks][runs][planes]
};

}  // namespace kvmesh
