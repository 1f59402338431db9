// The way of ranks that lie on several hosts: within each host first, then between the hosts, so
// that each row leaves a host once and not once per rank.
//
// Rank r has place r % L on host r / L, with L ranks per host. If ranks get heads, the places of a
// host divide the heads that all ranks of a place get; then the ranks of a place exchange the rows
// that their hosts have merged. If all ranks get all rows, the places divide the tokens, the ranks
// of a place merge theirs, and each host spreads the merged rows among its ranks.
#pragma once

#include <optional>

#include "comm/combine/hierarchical/stages.hpp"
#include "comm/combine/hierarchical/takes_hosts.hpp"
#include "core/owners/growing_block.hpp"
#include "kvmesh/device_memory.hpp"

namespace kvmesh {

/// Works on the device of its stages, and can be captured in a graph if they can.
class HierarchicalWay final : public CombineWay {
 public:
  /// `me` has the stages. REQUIRES: they are of the layout.
  HierarchicalWay(Rank me, const HostLayout& hosts, Device device, HierarchyStages stages);

  WayKind kind() const override { return WayKind::kHierarchical; }
  void identify(const PlanDigest& digest) override;
  void set_layer(int layer) override;
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override;
  void check_run(const Partial& mine, const CombineOutput& output) const override;
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override;
  CombineStrategy strategy() const override { return stages_.inside->strategy(); }
  std::uint64_t generation() const override;
  std::size_t workspace_bytes() const override;
  std::size_t host_bytes() const override;

 private:
  /// Rows with their LSEs, each contiguous.
  class RowBuffer {
   public:
    /// Returns true if the rows moved.
    bool reserve(std::int64_t rows, std::int64_t dim, Device device);
    TensorView o(std::int64_t tokens, std::int64_t heads, std::int64_t first = 0) const;
    TensorView lse(std::int64_t tokens, std::int64_t heads, std::int64_t first = 0) const;
    /// On a GPU: makes `rows` rows and their LSEs NaN.
    void poison(std::int64_t rows, Stream stream) const;
    std::size_t size_bytes() const { return o_.size_bytes() + lse_.size_bytes(); }

   private:
    GrowingBlock<DeviceMemory> o_, lse_;
    std::int64_t dim_ = 0;
    Device device_;
  };

  void plan_heads(const CombineOptions& options, Stream stream);
  void plan_all(const CombineOptions& options, Stream stream);
  void run_heads(const Partial& mine, const CombineOutput& output, Stream stream);
  void run_all(const Partial& mine, const CombineOutput& output, Stream stream);
  void reserve(RowBuffer& buffer, std::int64_t rows);
  /// Returns `mine` viewed as [tokens * hosts, heads / hosts]: the hosts' shares of the heads, one
  /// after the other.
  Partial by_hosts(const Partial& mine, Stream stream);

  Participation inside_mask(const Participation& mask, int copies) const;
  Participation across_mask(const Participation& mask, const IndexRange& tokens) const;
  Rank rank_at(int host, int place) const { return Rank{host * hosts_.per_host + place}; }
  int ranks() const { return hosts_.hosts * hosts_.per_host; }
  int host() const { return me_ / hosts_.per_host; }
  int place() const { return me_ % hosts_.per_host; }

  HostLayout hosts_;
  int me_;
  Device device_;
  HierarchyStages stages_;
  std::optional<CombineShape> shape_;  // of the last plan
  Scatter scatter_ = Scatter::kAll;
  std::uint64_t generation_ = 0;
  RowBuffer packed_, merged_inside_, merged_;
};

}  // namespace kvmesh
