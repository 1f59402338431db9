// Moves a sequence's records between the ranks' pages and the stream of world rank 0.
#pragma once

#include <deque>
#include <span>
#include <vector>

#include "runtime/cache/cache_group.hpp"
#include "runtime/streams/record_rows.hpp"
#include "runtime/streams/stream_outcome.hpp"

namespace kvmesh {

/// The parts of a cache that a stream is made from, or goes to.
struct CacheParts {
  Mesh& mesh;
  std::deque<CacheGroup>& groups;
  const PoolStorage& pools;
};

class RecordTransfer {
 public:
  /// REQUIRES: the header, and what the parts refer to, outlive it.
  RecordTransfer(const CacheParts& cache, const SequenceHeader& header, SequenceId sequence);

  /// Packs this rank's part, collects all parts on rank 0 and writes them there. Collective.
  void send(const RecordPlace& place, std::int64_t tokens, ByteSink* sink, Outcome& outcome);
  /// Reads a record on rank 0, sends it to all and keeps this rank's part. Returns whether rank 0
  /// could read it. Whether its checksum was good, and a part was kept, is a rank's outcome alone,
  /// rank 0's until the next record. Collective.
  bool receive(const RecordPlace& place, std::int64_t tokens, ByteSource* source, Outcome& outcome);

 private:
  /// The rows of a rank's heads on its pages.
  struct Part {
    std::vector<PageMove> moves;    // from its pages to the record
    std::vector<std::byte> packed;  // the rows, where they do not lie in this rank's pools
  };

  void find_runs(const RecordPlace& place, std::int64_t tokens);
  void make_room(Part& part, const PageMover& mover, int layer) const;
  void collect(const PageMover& mover, int layer, Outcome& outcome);
  void place_part(RecordRows& rows, int rank, const PageMover& mover, int layer);
  void write(const RecordRows& rows, const RecordPlace& place, std::int64_t tokens, ByteSink& sink);
  void keep(const RecordPlace& place, std::int64_t tokens, ByteSource& source);
  std::span<const std::byte> fetch(std::size_t bytes, ByteSource* source, Outcome& outcome);

  PageRank page_rank(int rank) const;
  Part& part(int rank) { return parts_[static_cast<std::size_t>(rank)]; }
  bool is_packed(int rank) const { return device_ || rank != world_.rank().value; }

  CacheParts cache_;
  Communicator& world_;
  DeviceMoves device_;
  const SequenceHeader& header_;
  SequenceId sequence_;
  std::size_t bytes_of_all_;
  Crc32cJoins joins_;
  // They describe the record that moves now, and are members to keep their memory.
  std::vector<RecordRun> runs_;
  std::vector<Part> parts_;  // [world]
  std::vector<std::byte> record_, buffer_;
};

}  // namespace kvmesh
