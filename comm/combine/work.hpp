// What a Combiner keeps between calls, and its steps.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "comm/combine/rows.hpp"
#include "kvmesh/combine.hpp"

namespace kvmesh {

/// Floats to send or receive. Grows and never shrinks; what it held is lost with each resize.
class RowBuffer {
 public:
  float* resize(std::int64_t floats) {
    used_ = static_cast<std::size_t>(floats);
    if (used_ > values_.size()) values_.resize(used_);
    return values_.data();
  }
  float* data() { return values_.data(); }
  std::span<float> values() { return std::span(values_).first(used_); }

 private:
  std::vector<float> values_;
  std::size_t used_ = 0;
};

class Combiner::Work {
 public:
  explicit Work(Communicator& comm);
  void combine(const Partial& mine, const CombineOptions& options, const CombineOutput& output);

 private:
  /// To the owners under `scatter`, which get their rows of `output`. Two ways, the same bits.
  void all_to_all(const Partial& mine, const RowMap& map, Scatter scatter,
                  const CombineOutput& output);
  void reduce_scatter(const Partial& mine, const RowMap& map, Scatter scatter,
                      const CombineOutput& output);

  /// Every row to every rank in two steps: merged by an owner each, then gathered.
  void scatter_and_gather(const Partial& mine, const RowMap& map, bool reduce,
                          const CombineOutput& output);

  /// A group of one: no peer to send to, nothing to merge.
  void copy_mine(const Partial& mine, const RowMap& map, const CombineOutput& output);

  // A step of all_to_all.
  void merge_received(const RowMap& map, const CombineBlock& own, const CombineOutput& output);

  // Steps of reduce_scatter, and the LSEs of one row, by rank.
  void gather_lses(const Partial& mine, const RowMap& map, Scatter scatter);
  void exchange_rescaled(const Partial& mine, const RowMap& map, Scatter scatter);
  void sum_received(const RowMap& map, const CombineBlock& own, const CombineOutput& output);
  std::span<float> lses_of(const RowMap& map, std::int64_t token, std::int64_t head);

  /// Sets one reader a rank to the first of the rows of `own` that the rank gave: its message in
  /// `incoming_`, where our own rows lie too.
  void start_reading(const RowMap& map, const CombineBlock& own);

  /// Sends each peer its outgoing buffer (or all of them `to_all`), fills the incoming ones.
  void exchange(std::string_view operation, RowBuffer* to_all = nullptr);
  RowBuffer& outgoing(int peer) { return outgoing_[static_cast<std::size_t>(peer)]; }
  RowBuffer& incoming(int peer) { return incoming_[static_cast<std::size_t>(peer)]; }

  struct Reader {
    int rank;
    const float* o;
    const float* lse;  // after the last O; only in messages that have LSEs
  };

  Communicator* comm_;
  int me_;
  std::vector<RowBuffer> outgoing_;  // [rank]
  std::vector<RowBuffer> incoming_;  // [rank]
  std::vector<Outgoing> outgoing_entries_;
  std::vector<Incoming> incoming_entries_;
  std::vector<Reader> readers_;  // in rank order
  RowBuffer merged_;             // this rank's merged rows, before they are gathered
  std::vector<float> lses_;      // all_to_all: of one row; reduce_scatter: [token][head][rank]
  std::vector<float> row_;       // one row's sum
};

}  // namespace kvmesh
