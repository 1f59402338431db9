// The combine of one step, and its query gather, on any device.
#pragma once

#include <array>
#include <memory>
#include <optional>

#include "comm/combine/choice/combine_ways.hpp"
#include "comm/combine/choice/query_gather.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// Chooses a combine way for each plan and keeps the ways that it has used, since a GPU may still
/// use their memory. REQUIRES: `ways` outlives it.
class StepCombine {
 public:
  /// Plans nothing. `has_limits`: the step has StepLimits. `merges_alike`: no way is chosen, unless
  /// it is requested, that may merge a row in another order when the batch has more rows.
  /// @throws InvalidArgument if no way of the group has the strategy.
  StepCombine(CombineWays& ways, const CombineOptions& options, bool has_limits,
              bool merges_alike = false);

  /// Plans as CombineWay does. Computes the batch's mask and passes it only if the way takes one;
  /// no rank takes part in the rows past the batch's tokens.
  void plan(const CombineShape& shape, const StepBatch& batch, Stream stream);
  /// REQUIRES: a plan.
  void check_run(const Partial& mine, const CombineOutput& output) const {
    way_->check_run(mine, output);
  }
  void run(const Partial& mine, const CombineOutput& output, Stream stream) {
    way_->run(mine, output, stream);
  }

  /// As in CombineWay.
  std::optional<Partial> sent_tensors() const { return way_->sent_tensors(); }
  bool takes_sent_rows() const { return way_->takes_sent_rows(); }
  CombineTarget target() { return way_->target(); }
  void run_sent(const CombineOutput& output, Stream stream) { way_->run_sent(output, stream); }
  void set_layer(int layer) {
    way_->set_layer(layer);
    gather_.set_layer(layer);
  }

  /// As QueryGather::run. Needs no plan.
  void gather_queries(const QueryShares& queries, Stream stream) { gather_.run(queries, stream); }

  std::uint64_t generation() const;
  std::size_t workspace_bytes() const;
  std::size_t host_bytes() const;

 private:
  void use(WayKind kind);
  CombineMeans means() const;

  CombineWays& ways_;
  CombineOptions options_;
  bool has_limits_;
  bool merges_alike_;
  std::array<std::unique_ptr<CombineWay>, kWayKinds> made_;  // [kind]
  CombineWay* way_ = nullptr;
  QueryGather gather_;
  std::uint64_t changes_ = 0;  // number of times the way was changed
};

}  // namespace kvmesh
