// One combine on the host, planned once per step: the owners of the rows, and how many rows go
// where.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/combine/plan_digest.hpp"
#include "comm/combine/rows.hpp"
#include "kvmesh/combine.hpp"

namespace kvmesh {

struct HostPlan {
  RowMap map;
  int rank = 0;
  CombineStrategy strategy = CombineStrategy::kAllToAll;  // not kAuto
  /// The rows that a rank gets.
  Scatter scatter = Scatter::kAll;
  /// The rows that a rank merges: those that it gets, or, if `gathers`, those of an owner.
  Scatter merging = Scatter::kAll;
  /// Whether the merged rows then go from their owners to all ranks.
  bool gathers = false;
  /// Whether O goes in a message of its own, from the sender's tensor: a copy into a message with
  /// its LSEs would take longer than a second message.
  bool sends_o_apart = false;
  /// The same of the merged rows, where `gathers`.
  bool gathers_o_apart = false;

  // Rows between this rank and each other one, under `merging`; [rank].
  std::vector<std::int64_t> sent_rows{};
  std::vector<std::int64_t> received_rows{};  // from this rank: its own
  // For kReduceScatter: the LSEs of the first step, without this rank's own.
  std::vector<std::int64_t> sent_lses{};
  std::vector<std::int64_t> received_lses{};

  PlanDigest digest{};  // sent along with the rows

  CombineBlock own() const { return map.block(merging, rank); }
  CombineBlock result() const { return map.block(scatter, rank); }
};

/// @throws InvalidArgument.
HostPlan plan_host_combine(const CombineShape& shape, const CombineOptions& options, int rank,
                           int ranks);

/// Returns the digest of all that the ranks must have planned alike: the caller's part, which is
/// `given`, and the combine's own arguments.
PlanDigest digest_of(const CombineShape& shape, const CombineOptions& options, PlanDigest given);

/// The heads of a token whose LSEs `rank` needs: all if it must scale its own rows, else those
/// whose merged LSE it owes as the owner of `owned`.
IndexRange heads_needed(const RowMap& map, int rank, const CombineBlock& owned, std::int64_t token);

/// Calls `visit(token, head)` for each LSE that `from` sends to `to`, which owns `owned`.
template <class Visit>
void for_each_lse(const RowMap& map, int from, int to, const CombineBlock& owned,
                  const Visit& visit) {
  for (std::int64_t t = 0; t < map.all().tokens.end; ++t) {
    if (!map.takes_part(t, from)) continue;
    const IndexRange heads = heads_needed(map, to, owned, t);
    for (std::int64_t h = heads.begin; h < heads.end; ++h) visit(t, h);
  }
}

}  // namespace kvmesh
