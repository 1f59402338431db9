#include "comm/combine/hierarchical/stages.hpp"

#include <utility>
#include <vector>

#include "comm/combine/hierarchical/fitting_way.hpp"
#include "comm/combine/host/host_way.hpp"
#include "comm/combine/nccl/nccl_way.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

/// The ranks of this rank's host.
std::vector<Rank> ranks_inside(const HostLayout& hosts, Rank me) {
  std::vector<Rank> ranks;
  const int first = me.value / hosts.per_host * hosts.per_host;
  for (int place = 0; place < hosts.per_host; ++place) ranks.push_back(Rank{first + place});
  return ranks;
}

/// The ranks at this rank's place on each host.
std::vector<Rank> ranks_across(const HostLayout& hosts, Rank me) {
  std::vector<Rank> ranks;
  for (int host = 0; host < hosts.hosts; ++host) {
    ranks.push_back(Rank{host * hosts.per_host + me.value % hosts.per_host});
  }
  return ranks;
}

void check_layout(const HostLayout& hosts, int ranks) {
  require(hosts.hosts * hosts.per_host == ranks, "combine: {} hosts of {} ranks, {} ranks",
          hosts.hosts, hosts.per_host, ranks);
}

}  // namespace

HierarchyStages stages_over_hosts(Communicator& comm, const HostLayout& hosts) {
  check_layout(hosts, comm.size());
  HierarchyStages stages;
  stages.inside_comm = std::make_unique<Subset>(comm, ranks_inside(hosts, comm.rank()));
  stages.across_comm = std::make_unique<Subset>(comm, ranks_across(hosts, comm.rank()));
  const auto inside_rows = std::make_shared<RowExchange>(*stages.inside_comm);
  stages.inside = std::make_unique<HostWay>(inside_rows);
  stages.across = std::make_unique<HostWay>(std::make_shared<RowExchange>(*stages.across_comm));
  stages.spread = std::make_unique<HostWay>(inside_rows);
  return stages;
}

HierarchyStages stages_over_gpus(NcclGroup& group, PeerWindow* window, const HostLayout& hosts) {
  check_layout(hosts, group.size());
  const auto make_inside = [&]() -> std::unique_ptr<CombineWay> {
    auto by_nccl = make_nccl_way(group, ranks_inside(hosts, group.rank()));
    if (window == nullptr) return by_nccl;
    return std::make_unique<FittingWay>(*window, std::move(by_nccl));
  };
  HierarchyStages stages;
  stages.inside = make_inside();
  stages.across = make_nccl_way(group, ranks_across(hosts, group.rank()));
  stages.spread = make_inside();
  stages.may_give_up = window != nullptr;
  return stages;
}

}  // namespace kvmesh
