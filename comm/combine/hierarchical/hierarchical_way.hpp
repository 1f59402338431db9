// The way over the ranks' communicator where they lie on several hosts: within each host first,
// then between the hosts, so that each row leaves a host once and not once per rank.
//
// Rank r has place r % L on host r / L, with L ranks per host. If ranks get heads, the places of a
// host divide the heads that all ranks of a place get; then the ranks of a place exchange the rows
// that their hosts have merged. If all ranks get all rows, the places divide the tokens, the ranks
// of a place merge theirs, and each host spreads the merged rows among its ranks.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "comm/combine/hierarchical/takes_hosts.hpp"
#include "comm/combine/host/host_way.hpp"
#include "comm/subset.hpp"

namespace kvmesh {

class HierarchicalWay final : public CombineWay {
 public:
  /// REQUIRES: hosts.hosts * hosts.per_host is the size of `comm`.
  HierarchicalWay(Communicator& comm, const HostLayout& hosts);

  WayKind kind() const override { return WayKind::kHierarchical; }
  void identify(const PlanDigest& digest) override;
  void plan(const CombineShape& shape, const CombineOptions& options, Stream stream) override;
  void check_run(const Partial& mine, const CombineOutput& output) const override;
  void run(const Partial& mine, const CombineOutput& output, Stream stream) override;
  CombineStrategy strategy() const override { return inside_.strategy(); }
  std::uint64_t generation() const override { return 0; }
  std::size_t workspace_bytes() const override;
  std::size_t host_bytes() const override { return workspace_bytes(); }

  /// Returns how many bytes this rank has sent to other hosts.
  std::uint64_t bytes_to_other_hosts() const { return across_comm_.sent_bytes(); }

 private:
  /// Rows with their LSEs, contiguous.
  struct Rows {
    void resize(std::int64_t rows, std::int64_t dim);
    TensorView o_view(std::int64_t tokens, std::int64_t heads, std::int64_t first = 0);
    TensorView lse_view(std::int64_t tokens, std::int64_t heads, std::int64_t first = 0);
    std::vector<float> o, lse;
    std::int64_t dim = 0;
  };

  void plan_heads(const CombineOptions& options);
  void plan_all(const CombineOptions& options);
  void run_heads(const Partial& mine, const CombineOutput& output);
  void run_all(const Partial& mine, const CombineOutput& output);
  /// Returns `mine` viewed as [tokens * hosts, heads / hosts]: the hosts' shares of the heads, one
  /// after the other.
  Partial by_hosts(const Partial& mine);

  Participation inside_mask(const Participation& mask, int copies) const;
  Participation across_mask(const Participation& mask, const Share& tokens) const;
  Rank rank_at(int host, int place) const { return Rank{host * hosts_.per_host + place}; }
  int host() const { return me_ / hosts_.per_host; }
  int place() const { return me_ % hosts_.per_host; }

  HostLayout hosts_;
  int ranks_;
  int me_;
  Subset inside_comm_, across_comm_;
  std::shared_ptr<RowExchange> inside_rows_;
  HostWay inside_, across_, spread_;
  std::optional<CombineShape> shape_;  // of the last plan
  Scatter scatter_ = Scatter::kAll;
  Rows packed_, merged_inside_, merged_;
};

}  // namespace kvmesh
