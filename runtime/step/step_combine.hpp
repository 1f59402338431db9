// The combine of one step, on any device.
#pragma once

#include <array>
#include <memory>

#include "comm/combine/combine_ways.hpp"
#include "runtime/step/step_batch.hpp"

namespace kvmesh {

/// Chooses a way for each plan and keeps those that it has used: memory that a GPU still uses is
/// not freed. Does not outlive `ways`.
class StepCombine {
 public:
  /// `has_limits`: the step has StepLimits. Nothing is planned.
  /// @throws InvalidArgument if no way of the group has the strategy.
  StepCombine(CombineWays& ways, const CombineOptions& options, bool has_limits);

  /// Plans as CombineWay does, with the batch's mask where the way takes one; only then is the mask
  /// worked out.
  void plan(const CombineShape& shape, const StepBatch& batch, Stream stream);
  /// REQUIRES: a plan.
  void check_run(const Partial& mine, const CombineOutput& output) const {
    way_->check_run(mine, output);
  }
  void run(const Partial& mine, const CombineOutput& output, Stream stream) {
    way_->run(mine, output, stream);
  }

  std::uint64_t generation() const;
  std::size_t workspace_bytes() const;

 private:
  void use(WayKind kind);

  CombineWays& ways_;
  CombineOptions options_;
  bool has_limits_;
  std::array<std::unique_ptr<CombineWay>, kWayKinds> made_;  // [kind]
  CombineWay* way_ = nullptr;
  std::uint64_t changes_ = 0;  // of the way
};

}  // namespace kvmesh
