// The threads of a rank at work on the rows of records.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvmesh/thread_pool.hpp"
#include "runtime/streams/record_rows.hpp"

namespace kvmesh {

/// Copies and sums rows of records, some at a time on each thread.
class RowThreads {
 public:
  /// REQUIRES: the pool outlives it.
  explicit RowThreads(ThreadPool& threads) : threads_(threads) {}

  /// Copies records, each with its checksum behind it, one after another, to `to`, which is as
  /// large. `bytes_of_all` as of BulkCopy. REQUIRES: all rows have been placed.
  void gather(std::span<const RecordRows> records, std::span<std::byte> to,
              std::size_t bytes_of_all);
  /// Copies the rows that have been placed from a record. Returns the record's checksum if it
  /// `sums` the rows, else no checksum.
  std::uint32_t scatter(const RecordRows& rows, std::span<const std::byte> record,
                        std::size_t bytes_of_all, bool sums);

  /// Copies rows that lie side by side at their destination: `heads` from each place of `from` to
  /// that of the same number of `to`, whose pitch is the bytes of a row.
  void pack(std::span<const RowPlace> from, std::span<const RowPlace> to, std::size_t heads);

 private:
  /// Rows that one thread copies.
  struct Share {
    std::size_t record = 0;  // of several
    RowRange rows{};
  };
  void add_shares(const RecordRows& rows, std::size_t record);

  ThreadPool& threads_;
  Crc32cJoins joins_;
  // Members to keep their memory.
  std::vector<Share> shares_;
  std::vector<std::uint32_t> sums_;
  std::vector<std::size_t> sums_before_;  // [records] those of the records before
  std::vector<std::byte*> places_;        // [records]
};

/// Bytes of the checksum behind a record.
inline constexpr std::size_t kSumBytes = sizeof(std::uint32_t);

}  // namespace kvmesh
