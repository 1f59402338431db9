// The choice of the way of a combine: every such decision is made here.
#pragma once

#include <optional>
#include <vector>

#include "comm/combine/choice/way_table.hpp"
#include "comm/combine/combine_way.hpp"
#include "comm/combine/peer/peer_room.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

/// The ways that are available to a group of ranks.
struct CombineMeans {
  int ranks = 1;
  DeviceKind device = DeviceKind::kCpu;
  bool has_nccl = false;               ///< the ranks' GPUs are an NCCL group
  HostLayout hosts{};                  ///< the hosts that the ranks lie on
  std::optional<PeerRoom> peer{};      ///< the ranks have windows
  bool shares_gpus = false;            ///< some ranks with windows have the same GPU
  std::optional<WayKind> preferred{};  ///< by the environment
  const WayTable* table = nullptr;     ///< measured times, if there are any
};

struct CombineChoice {
  WayKind way = WayKind::kHost;
  CombineStrategy strategy = CombineStrategy::kAllToAll;  ///< not kAuto
  /// Whether the plan gets the participation mask. If not, every rank takes part in every row.
  bool has_mask = true;
  Scatter scatter = Scatter::kAll;  ///< rows that the way gives a rank: the options', or more
  friend bool operator==(const CombineChoice&, const CombineChoice&) = default;
};

/// Chooses for a step's partials: the way of the options, else of the environment, else by a rule:
/// the first of peer, hierarchical, NCCL, staged and host that the group has. Rows that do not fit
/// into a window take the next. With limits NCCL gives all ranks the rows of Scatter::kOwner, since
/// captured messages follow no mask. Where ranks share a GPU, peer must be asked for. If there is a
/// table, and another of `ways_to_choose_from` is clearly faster by it than the rule's, that one is
/// taken; but kReduceScatter only where the rule has it. `has_limits`: the step has StepLimits, so
/// its runs may be captured in a graph.
/// @throws InvalidArgument if no way of the group has the strategy, or the group does not have the
/// way.
CombineChoice choose_way(const CombineMeans& means, const CombineShape& shape,
                         const CombineOptions& options, bool has_limits);

/// Chooses the way of a query gather whose result has `rows`: by the same rule, without a table.
/// kHierarchical, which a gather does not have, is no request. @throws InvalidArgument if the group
/// does not have the way that is `asked` for.
WayKind choose_gather_way(const CombineMeans& means, const CombineShape& rows, Dtype dtype,
                          std::optional<WayKind> asked);

/// Returns the ways and strategies among which a table may choose for these rows, in the order of
/// the rule: those that fit and that kAuto may become. Staged only stands alone: it waits for the
/// host, and cannot be captured. There are none for Scatter::kOwner, because the mask decides what
/// it sends.
std::vector<WayStrategy> ways_to_choose_from(const CombineMeans& means, const CombineShape& shape,
                                             const CombineOptions& options);

/// Whether a captured run obeys the mask of a later plan, and sends less for it. Where it does not,
/// a plan with limits takes no mask: the graph's messages keep the size that they had at capture.
bool follows_mask_in_graph(WayKind way);

}  // namespace kvmesh
