#include "comm/combine/nccl/device_combine_plan.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "comm/combine/choose_way.hpp"
#include "core/check.hpp"
#include "core/pod/shares.hpp"

namespace kvmesh {
namespace {

// Messages begin at 16 bytes, so that the kernels move 16 bytes at a time.
constexpr std::int64_t kAlignFloats = 4;

std::int64_t align(std::int64_t floats) {
  return (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
}

/// The owner of each token; 0 where rows are not scattered by token.
std::vector<std::int32_t> owners_of_tokens(const DeviceCombinePlan& plan,
                                           const Participation& participation) {
  std::vector<std::int32_t> owners(static_cast<std::size_t>(plan.shape.tokens));
  for (std::int64_t t = 0; t < plan.shape.tokens; ++t) {
    std::int32_t& owner = owners[static_cast<std::size_t>(t)];
    if (plan.scatter == Scatter::kOwner) owner = participation.owner(t).value;
    if (plan.scatter == Scatter::kTokens) {
      owner =
          static_cast<std::int32_t>(share_owner<std::int64_t>(plan.shape.tokens, t, plan.ranks));
    }
  }
  return owners;
}

/// Places begin anew with each owner's tokens.
void place_tokens(DeviceCombinePlan& plan, const Participation& participation) {
  plan.token_places.assign(static_cast<std::size_t>(plan.ranks * plan.shape.tokens), -1);
  std::vector<std::int32_t> owners = owners_of_tokens(plan, participation);
  std::int32_t* place = plan.token_places.data();
  for (int r = 0; r < plan.ranks; ++r) {
    std::vector<std::int32_t> next(static_cast<std::size_t>(plan.ranks));
    for (std::int64_t t = 0; t < plan.shape.tokens; ++t, ++place) {
      const auto owner = static_cast<std::size_t>(owners[static_cast<std::size_t>(t)]);
      if (participation.has(t, Rank{r})) *place = next[owner]++;
    }
  }
  if (plan.scatter == Scatter::kOwner) plan.owners = std::move(owners);
}

/// Appends a message of `rows` rows to a buffer of `floats` floats.
RowMessage append(std::int64_t rows, std::int64_t dim, std::int64_t& floats) {
  const RowMessage message{floats, rows};
  floats += align(rows * (dim + 1));
  return message;
}

void lay_out_messages(DeviceCombinePlan& plan, const Participation* participation) {
  const RowMap map(plan.shape, plan.ranks, participation);
  const CombineBlock own = map.block(plan.scatter, plan.rank);
  for (int r = 0; r < plan.ranks; ++r) {
    const auto at = static_cast<std::size_t>(r);
    if (r == plan.rank) continue;
    plan.received[at] = append(map.rows_of(r, own), plan.shape.dim, plan.received_floats);
    if (plan.scatter != Scatter::kAll) {
      plan.sent[at] = append(map.rows_of(plan.rank, map.block(plan.scatter, r)), plan.shape.dim,
                             plan.sent_floats);
    }
  }
  if (plan.scatter != Scatter::kAll || plan.ranks == 1) return;
  const RowMessage to_all = append(map.rows_of(plan.rank, own), plan.shape.dim, plan.sent_floats);
  std::fill(plan.sent.begin(), plan.sent.end(), to_all);
}

}  // namespace

DeviceCombinePlan plan_device_combine(const CombineShape& shape, const CombineOptions& options,
                                      int rank, int ranks) {
  check_plan(shape, options, ranks);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  require(shape.heads == 0 || shape.tokens <= kMost / shape.heads,
          "combine: {} tokens of {} heads are too many rows", shape.tokens, shape.heads);

  DeviceCombinePlan plan{.rank = rank,
                         .ranks = ranks,
                         .shape = shape,
                         .scatter = options.scatter,
                         .strategy = resolve_strategy(WayKind::kNccl, shape, options, ranks)};
  plan.sent.resize(static_cast<std::size_t>(ranks));
  plan.received.resize(static_cast<std::size_t>(ranks));
  if (options.participation != nullptr) place_tokens(plan, *options.participation);
  if (plan.strategy == CombineStrategy::kAllToAll) {
    lay_out_messages(plan, options.participation);
  } else {
    plan.blocks = plan.scatter == Scatter::kAll ? 1 : ranks;
    plan.block_rows = plan.block(0).rows();  // the first share is the largest
  }
  return plan;
}

}  // namespace kvmesh
