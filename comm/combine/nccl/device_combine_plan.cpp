#include "comm/combine/nccl/device_combine_plan.hpp"

#include <algorithm>
#include <limits>

#include "comm/combine/choose_way.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

// Messages begin at 16 bytes, so that the kernels move 16 bytes at a time.
constexpr std::int64_t kAlignFloats = 4;

std::int64_t align(std::int64_t floats) {
  return (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
}

/// Places begin anew with each owner's tokens: with those of the next share under kTokens.
void place_tokens(DeviceCombinePlan& plan, const Participation& participation) {
  plan.token_places.assign(static_cast<std::size_t>(plan.ranks * plan.shape.tokens), -1);
  std::int32_t* place = plan.token_places.data();
  const int owners = plan.scatter == Scatter::kTokens ? plan.ranks : 1;
  for (int r = 0; r < plan.ranks; ++r) {
    for (int owner = 0; owner < owners; ++owner) {
      std::int32_t next = 0;
      const Share share = share_of(plan.shape.tokens, owner, owners);
      for (std::int64_t t = share.begin; t < share.end; ++t, ++place) {
        if (participation.has(t, Rank{r})) *place = next++;
      }
    }
  }
}

/// Appends a message of `rows` rows to a buffer of `floats` floats.
RowMessage append(std::int64_t rows, std::int64_t dim, std::int64_t& floats) {
  const RowMessage message{floats, rows};
  floats += align(rows * (dim + 1));
  return message;
}

void lay_out_messages(DeviceCombinePlan& plan, const Participation* participation) {
  const RowMap map(plan.shape, plan.ranks, participation);
  const CombineBlock own = plan.block(plan.rank);
  for (int r = 0; r < plan.ranks; ++r) {
    const auto at = static_cast<std::size_t>(r);
    if (r == plan.rank) continue;
    plan.received[at] = append(map.rows_of(r, own), plan.shape.dim, plan.received_floats);
    if (plan.scatter != Scatter::kAll) {
      plan.sent[at] =
          append(map.rows_of(plan.rank, plan.block(r)), plan.shape.dim, plan.sent_floats);
    }
  }
  if (plan.scatter != Scatter::kAll || plan.ranks == 1) return;
  const RowMessage to_all = append(map.rows_of(plan.rank, own), plan.shape.dim, plan.sent_floats);
  std::fill(plan.sent.begin(), plan.sent.end(), to_all);
}

}  // namespace

DeviceCombinePlan plan_device_combine(const CombineShape& shape, const CombineOptions& options,
                                      int rank, int ranks) {
  check_plan(shape, options.participation, ranks);
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
