// Moves a sequence's records between the ranks' pages and the stream of world rank 0.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "runtime/streams/record_rows.hpp"
#include "runtime/streams/staged_records.hpp"
#include "runtime/streams/stream_outcome.hpp"

namespace kvmesh {

class RecordTransfer {
 public:
  /// `outcome` gets a failure to prepare this rank's part. REQUIRES: the header, and what the parts
  /// refer to, outlive it; no one else uses the sequence's pages until it ends.
  RecordTransfer(const CacheParts& cache, const SequenceHeader& header, SequenceId sequence,
                 StreamWay way, Outcome& outcome);

  /// Export: packs this rank's part, collects all parts on rank 0 and writes them there.
  /// Collective.
  void send(const RecordPlace& place, std::int64_t tokens, ByteSink* sink, Outcome& outcome);
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

  void find_runs(const RecordPlace& place, std::int64_t tokens);
  void pack(const PageMover& mover, const RecordPlace& place);
  void collect(const PageMover& mover, const RecordPlace& place, Outcome& outcome);
  void place_part(RecordRows& rows, int rank, const PageMover& mover, const RecordPlace& place);
  void write(const RecordRows& rows, const RecordPlace& place, std::int64_t tokens, ByteSink& sink);
  void keep(const RecordPlace& place, std::int64_t tokens, ByteSource& source);
  std::span<const std::byte> fetch(std::size_t bytes, ByteSource* source, Outcome& outcome);

  PageRank page_rank(int rank) const;
  Part& part(int rank) { return parts_[static_cast<std::size_t>(rank)]; }

  CacheParts cache_;
  Communicator& world_;
  const SequenceHeader& header_;
  SequenceId sequence_;
  std::size_t bytes_of_all_;
  std::optional<StagedRecords> staged_;  // none: this rank's rows are in host memory
  Crc32cJoins joins_;
  // They describe the record that moves now, and are members to keep their memory.
  std::vector<RecordRun> runs_;
  std::vector<Part> parts_;  // [world]
  std::vector<std::byte> record_, buffer_;
};

}  // namespace kvmesh
