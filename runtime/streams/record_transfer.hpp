// Moves a sequence's records between the ranks' pages and the stream of world rank 0.
#pragma once

#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "runtime/streams/row_threads.hpp"
#include "runtime/streams/staged_records.hpp"
#include "runtime/streams/stream_outcome.hpp"

namespace kvmesh {

class RecordTransfer {
 public:
  /// `outcome` gets a failure to prepare this rank's part. REQUIRES: the header, and what the parts
  /// refer to, outlive it; nothing else uses the sequence's pages until it ends.
  RecordTransfer(const CacheParts& cache, const SequenceHeader& header, SequenceId sequence,
                 StreamWay way, Outcome& outcome);

  /// Returns the batches to `send`, in this order.
  std::span<const RecordBatch> batches() const { return batches_; }
  /// Export: packs this rank's part of each record, collects all parts on rank 0 and writes the
  /// records there. Collective.
  void send(const RecordBatch& batch, ByteSink* sink, Outcome& outcome);
  /// Import: reads a record on rank 0, sends it to all and keeps this rank's part. Returns whether
  /// rank 0 could read it. Whether its checksum was good, and a part was kept, is a rank's outcome
  /// alone, rank 0's until the next record. Collective.
  bool receive(const RecordPlace& place, std::int64_t tokens, ByteSource* source, Outcome& outcome);
  /// Import: waits until this rank's part of all records is in its pages.
  void finish(Outcome& outcome);

 private:
  /// The rows of a rank's heads on its pages.
  struct Part {
    std::vector<PageMove> moves;    // from its pages to the record, or back
    std::vector<std::byte> packed;  // the rows, if rank 0 gets them from another rank
  };
  /// The tokens of a record on the ranks' pages.
  struct Record {
    RecordPlace place{};
    std::int64_t tokens = 0;
    std::vector<RecordRun> runs{};
    std::vector<Part> parts{};  // [world] those that this rank has to do with: rank 0 with all
  };

  Record& find_runs(std::size_t index, const RecordPlace& place, std::int64_t tokens);
  std::vector<RowPlace> my_rows(const PageMover& mover, const Record& record);
  static std::vector<RowPlace> packed_rows(const PageMover& mover, const Record& record,
                                           Part& part);
  void pack(const PageMover& mover, Record& record);
  void collect(const PageMover& mover, Record& record, Outcome& outcome);
  RecordRows rows_of(const Record& record) const;
  void place_part(RecordRows& rows, int rank, const PageMover& mover, Record& record);
  void write(std::span<const RecordRows> rows, ByteSink& sink);
  void keep(Record& record, ByteSource& source);
  std::span<const std::byte> fetch(std::size_t bytes, ByteSource* source, Outcome& outcome);

  PageRank page_rank(int rank) const;

  CacheParts cache_;
  Communicator& world_;
  const SequenceHeader& header_;
  SequenceId sequence_;
  std::size_t bytes_of_all_;
  std::vector<RecordBatch> batches_;
  std::optional<StagedRecords> staged_;  // none: this rank's rows are in host memory
  RowThreads threads_;
  // They describe the records that move now, and are members to keep their memory.
  std::deque<Record> records_;
  std::vector<std::byte> record_, buffer_;
};

}  // namespace kvmesh
