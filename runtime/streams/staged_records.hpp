// The records of a GPU's pages, whose rows pass through pinned host memory in batches: one batch
// moves while the host reads or writes the rows of the other.
//
//   export   device   move 0 │ move 1        │ move 2        │
//            host            │ rows of 0     │ rows of 1     │ rows of 2
//
//   import   device          │               │ move 0        │ move 1        │ move 2
//            host            │ rows of 0     │ rows of 1     │ rows of 2     │
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "runtime/memory/page_mover.hpp"
#include "runtime/streams/record_pages.hpp"
#include "runtime/streams/sequence_format.hpp"

namespace kvmesh {

/// Records that follow one another in a stream: of kRecordTokens tokens some layers, or of several
/// times as many all layers of a group.
struct RecordBatch {
  std::size_t group = 0;
  std::int64_t first = 0;  ///< token
  std::int64_t tokens = 0;
  std::span<const int> layers{};
  std::size_t size_bytes = 0;  ///< at most, on one rank
};

/// Divides the records of a stream into batches that have at most `most_bytes` on one rank, or are
/// one record. REQUIRES: the header outlives them.
std::vector<RecordBatch> batches_of(const SequenceHeader& header, int head_parallel,
                                    std::size_t most_bytes);

/// Calls `body(place, tokens)` for all records of a batch in the stream's order.
template <class Body>
void for_each_record(const RecordBatch& batch, const Body& body) {
  const std::int64_t end = batch.first + batch.tokens;
  for (std::int64_t first = batch.first; first < end; first += kRecordTokens)
    for (const int layer : batch.layers)
      body(RecordPlace{first, layer, batch.group}, std::min(kRecordTokens, end - first));
}

enum class StreamWay : std::uint8_t { kExport, kImport };

/// This rank's rows of all records of a stream.
class StagedRecords {
 public:
  /// Takes the cache's buffers. REQUIRES: the staging has a stream, whose moves are done; the parts
  /// of the cache and the batches outlive it, and nothing else reads or writes the sequence's pages
  /// meanwhile.
  /// @throws Error without memory.
  StagedRecords(const CacheParts& cache, std::span<const RecordBatch> batches, SequenceId sequence,
                StreamWay way);
  /// Waits for a move that is under way, at most for the deadline: the caller may give up pages.
  ~StagedRecords();
  StagedRecords(const StagedRecords&) = delete;
  StagedRecords& operator=(const StagedRecords&) = delete;

  /// Returns where the rows of a record begin on each of this rank's runs (`moves_on`). Exported
  /// rows are there until the next batch, imported ones must be written before the next call.
  /// Blocks while the record's batch moves. REQUIRES: calls in the order of the stream.
  /// @throws Error if pages could not be moved, Timeout.
  std::vector<std::byte*> find(const RecordPlace& place);
  /// Blocks until all imported rows are in the pages. @throws as find.
  void finish();

 private:
  /// The moves of a batch.
  struct Layout {
    std::vector<PageMove> moves;
    std::vector<std::byte*> packed;         // [moves] where the rows of all layers begin
    std::vector<std::size_t> first_move{};  // [kRecordTokens tokens], and their end
  };

  void enter_next();
  void lay_out(std::size_t batch);
  void start(std::size_t batch);
  void start_entered();
  void wait();
  bool has_entered(const RecordPlace& place) const;
  PageMover mover(const RecordBatch& batch) const { return PageMover(cache_.pools, batch.group); }

  CacheParts cache_;
  SequenceId sequence_;
  StreamWay way_;
  std::span<const RecordBatch> batches_;
  std::size_t entered_ = 0;        // batches; the host works on the last of them
  std::array<Layout, 2> layouts_;  // of batch i the one at i % 2, as are the buffers
  bool is_moving_ = false;
  // Set by the stream's calls, which may come after a wait that has timed out.
  std::shared_ptr<std::atomic<bool>> has_failed_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace kvmesh
