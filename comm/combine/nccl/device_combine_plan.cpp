#include "comm/combine/nccl/device_combine_plan.hpp"

#include <algorithm>
#include <limits>

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
  plan.token_places.assign(static_cast<std::size_t>(plan.ranks * plan.tokens), -1);
  std::int32_t* place = plan.token_places.data();
  const int owners = plan.scatter == Scatter::kTokens ? plan.ranks : 1;
  for (int r = 0; r < plan.ranks; ++r) {
    for (int owner = 0; owner < owners; ++owner) {
      std::int32_t next = 0;
      const Share share = share_of(plan.tokens, owner, owners);
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
  const Partial shape{
      .o = tensor(static_cast<float*>(nullptr), {plan.tokens, plan.heads, plan.dim})};
  const RowMap map(shape, plan.ranks, participation);
  const CombineBlock own = plan.block(plan.rank);
  for (int r = 0; r < plan.ranks; ++r) {
    const auto at = static_cast<std::size_t>(r);
    if (r == plan.rank) continue;
    plan.received[at] = append(map.rows_of(r, own), plan.dim, plan.received_floats);
    if (plan.scatter != Scatter::kAll) {
      plan.sent[at] = append(map.rows_of(plan.rank, plan.block(r)), plan.dim, plan.sent_floats);
    }
  }
  if (plan.scatter != Scatter::kAll || plan.ranks == 1) return;
  const RowMessage to_all = append(map.rows_of(plan.rank, own), plan.dim, plan.sent_floats);
  std::fill(plan.sent.begin(), plan.sent.end(), to_all);
}

}  // namespace

CombineBlock DeviceCombinePlan::block(int owner) const {
  CombineBlock block{{0, tokens}, {0, heads}};
  if (scatter == Scatter::kTokens) block.tokens = share_of(tokens, owner, ranks);
  if (scatter == Scatter::kHeads) block.heads = share_of(heads, owner, ranks);
  return block;
}

// Two H200, NCCL 2.28, dim 128, in a graph: all-to-all is the fastest from 8 to 16384 rows
// (scattered by heads: 11 us against 16 for 8 rows, 41 against 58 for 16384; to all: 12 against 17,
// 67 against 78), since it sends once where the others do twice. To all it sends every row to every
// rank: with more than two ranks that is more than the others do, and from some MB on it shows.
CombineStrategy fastest_on_device(Scatter scatter, std::int64_t rows, std::int64_t dim, int ranks) {
  constexpr std::int64_t kDirectBytes = 4 << 20;
  const std::int64_t bytes = rows * (dim + 1) * static_cast<std::int64_t>(sizeof(float));
  const bool sends_too_much =
      scatter == Scatter::kAll && ranks > 2 && bytes * (ranks - 1) > kDirectBytes;
  return sends_too_much ? CombineStrategy::kReduceScatter : CombineStrategy::kAllToAll;
}

DeviceCombinePlan plan_device_combine(std::int64_t tokens, std::int64_t heads, std::int64_t dim,
                                      const CombineOptions& options, int rank, int ranks) {
  require(tokens >= 0 && heads >= 0 && dim >= 0, "combine: {} tokens, {} heads, dim {}", tokens,
          heads, dim);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  require(heads == 0 || tokens <= kMost / heads, "combine: {} tokens of {} heads are too many rows",
          tokens, heads);
  check_participation(options.participation, tokens, ranks);

  DeviceCombinePlan plan{.rank = rank,
                         .ranks = ranks,
                         .tokens = tokens,
                         .heads = heads,
                         .dim = dim,
                         .scatter = options.scatter,
                         .strategy = options.strategy};
  plan.sent.resize(static_cast<std::size_t>(ranks));
  plan.received.resize(static_cast<std::size_t>(ranks));
  if (plan.strategy == CombineStrategy::kAuto) {
    plan.strategy = fastest_on_device(plan.scatter, plan.rows(), dim, ranks);
  }
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
