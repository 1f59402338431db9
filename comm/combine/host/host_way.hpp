// The way over the ranks' communicator: rows go between host memories, sources are merged in rank
// order. Both strategies give the same bits.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm/combine/combine_way.hpp"
#include "comm/combine/host/host_plan.hpp"
#include "comm/combine/host/merged_lses.hpp"
#include "comm/combine/host/row_exchange.hpp"

namespace kvmesh {

class HostWay : public CombineWay {
 public:
  explicit HostWay(std::shared_ptr<RowExchange> rows) : rows_(std::move(rows)) {}

  WayKind kind() const override { return WayKind::kHost; }
  void identify(const PlanDigest& digest) override { given_ = digest; }
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override;
  void check_run(const Partial& mine, const CombineOutput& output) const override {
    check_run(mine, output, DeviceKind::kCpu);
  }
  /// The same for tensors in memory of kind `device`, which the caller copies.
  void check_run(const Partial& mine, const CombineOutput& output, DeviceKind device) const;
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override;
  CombineStrategy strategy() const override;
  std::uint64_t generation() const override { return 0; }
  /// Includes the memory that this way shares with the group's others.
  std::size_t workspace_bytes() const override;
  std::size_t host_bytes() const override { return workspace_bytes(); }

 private:
  struct Reader {
    int rank;
    const float* o;
    const float* lse;  // after the last O, or of a message of their own; not of kReduceScatter
  };

  /// Sends every row to its owner, which merges it into `output`. The two strategies, all_to_all
  /// and reduce_scatter, give the same bits.
  void merge_by_owners(const Partial& mine, const CombineOutput& output);
  void all_to_all(const Partial& mine, const CombineOutput& output);
  void reduce_scatter(const Partial& mine, const CombineOutput& output);

  /// Brings every row to every rank in two steps: an owner merges it, then all ranks gather it.
  void scatter_and_gather(const Partial& mine, const CombineOutput& output);

  /// Combines in a group of one rank, which has no peer to send to and nothing to merge.
  void copy_mine(const Partial& mine, const CombineOutput& output);

  // Steps of all_to_all.
  void exchange_packed(const Partial& mine);
  void exchange_apart(const Partial& mine);
  /// The O of `mine` in one piece: where it lies, or copied.
  const float* o_in_one_piece(const Partial& mine);
  void merge_received(const Partial& mine, const CombineOutput& output);
  void merge_lses_of(const Partial& mine, std::int64_t token);
  void list_sources(const Partial& mine, std::int64_t token, std::int64_t head);

  // Steps of reduce_scatter.
  void gather_lses(const Partial& mine);
  void exchange_rescaled(const Partial& mine);
  void sum_received(const CombineOutput& output);
  /// The number of a row in lses_.
  std::int64_t row_of(std::int64_t token, std::int64_t head) const {
    return token * plan_->map.shape().heads + head;
  }

  /// Sets one reader per rank to the first of this rank's own rows that the other rank gave.
  void start_reading();

  std::shared_ptr<RowExchange> rows_;
  PlanDigest given_;
  std::optional<HostPlan> plan_;
  std::vector<Reader> readers_;  // in rank order
  MergedLses lses_;              // all_to_all: of one token's heads; reduce_scatter: of all rows
  std::vector<WeightedRow> sources_;
  std::vector<float> row_;  // one row's sum
};

}  // namespace kvmesh
