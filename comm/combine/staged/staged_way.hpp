// The way for GPUs without a common NCCL group: through host memory.
#pragma once

#include "comm/combine/host/host_way.hpp"
#include "comm/combine/staged/host_copy.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

/// Brings the partials to the host, combines them there, and takes the rows back. Waits for the
/// stream, and for its copies, as DeviceGroup::wait does. Ranks that share one GPU need it, where
/// NCCL refuses; it needs nothing but a communicator.
class StagedWay : public CombineWay {
 public:
  StagedWay(DeviceGroup& group, std::shared_ptr<RowExchange> rows)
      : group_(&group), on_host_(std::move(rows)) {}

  WayKind kind() const override { return WayKind::kStaged; }
  void identify(const PlanDigest& digest) override { on_host_.identify(digest); }
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override {
    on_host_.plan(shape, options, stream);
  }
  void check_run(const Partial& mine, const CombineOutput& output) const override;
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override;
  CombineStrategy strategy() const override { return on_host_.strategy(); }
  std::uint64_t generation() const override { return 0; }
  std::size_t workspace_bytes() const override { return 0; }  // it is the host's
  std::size_t host_bytes() const override {
    return on_host_.workspace_bytes() + o_.held_bytes() + lse_.held_bytes() + out_o_.held_bytes() +
           out_lse_.held_bytes();
  }

 private:
  DeviceGroup* group_;
  HostWay on_host_;
  HostCopy o_, lse_, out_o_, out_lse_;
};

}  // namespace kvmesh
