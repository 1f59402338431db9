#include "comm/combine/nccl/device_combine_plan.hpp"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

#include "comm/combine/way_strategies.hpp"
#include "core/check.hpp"
#include "core/pod/shares.hpp"

namespace kvmesh {
namespace {

// Rows begin at 16 bytes, so that the kernels move 16 bytes at a time.
constexpr std::int64_t kAlignFloats = 4;

std::int64_t align(std::int64_t floats) {
  return (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
}

/// A mask of all ranks needs no places.
void forget_full_mask(DeviceCombinePlan& plan) {
  if (plan.scatter == Scatter::kOwner) return;  // its owners are beside the mask
  if (std::ranges::find(plan.token_places, -1) == plan.token_places.end()) {
    plan.token_places.clear();
  }
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

void lay_out_messages(DeviceCombinePlan& plan, const Participation* participation) {
  const RowMap map(plan.shape, plan.ranks, participation);
  const auto append = [&](std::int64_t rows, std::int64_t& floats) {
    const RowMessage message{floats, rows};
    floats += rows * plan.row_floats;
    return message;
  };
  const CombineBlock own = map.block(plan.scatter, plan.rank);
  const bool to_all = plan.scatter == Scatter::kAll;
  for (int r = 0; r < plan.ranks; ++r) {
    const auto at = static_cast<std::size_t>(r);
    if (r != plan.rank) plan.received[at] = append(map.rows_of(r, own), plan.received_floats);
    if (to_all || (r == plan.rank && !plan.keeps_own)) continue;
    plan.sent[at] = append(map.rows_of(plan.rank, map.block(plan.scatter, r)), plan.sent_floats);
  }
  if (!to_all || (plan.ranks == 1 && !plan.keeps_own)) return;
  std::ranges::fill(plan.sent, append(map.rows_of(plan.rank, own), plan.sent_floats));
}

/// A plan without its strategy's layout.
DeviceCombinePlan plan_rows(const CombineShape& shape, const CombineOptions& options, int rank,
                            int ranks) {
  check_plan(shape, options, ranks);
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  require(shape.heads == 0 || shape.tokens <= kMost / shape.heads,
          "combine: {} tokens of {} heads are too many rows", shape.tokens, shape.heads);

  DeviceCombinePlan plan{.rank = rank, .ranks = ranks, .shape = shape, .scatter = options.scatter};
  plan.sent.resize(static_cast<std::size_t>(ranks));
  plan.received.resize(static_cast<std::size_t>(ranks));
  if (options.participation != nullptr) place_tokens(plan, *options.participation);
  return plan;
}

}  // namespace

DeviceCombinePlan plan_device_combine(const CombineShape& shape, const CombineOptions& options,
                                      int rank, int ranks) {
  DeviceCombinePlan plan = plan_rows(shape, options, rank, ranks);
  plan.strategy = resolve_strategy(WayKind::kNccl, shape, options, ranks);
  plan.row_floats = align(shape.dim + 1);
  if (plan.packs()) {
    forget_full_mask(plan);
    plan.keeps_own = plan.is_tensor();
    lay_out_messages(plan, options.participation);
  } else {
    plan.blocks = plan.scatter == Scatter::kAll ? 1 : ranks;
    plan.block_rows = plan.block(0).rows();  // the first share is the largest
  }
  return plan;
}

DeviceCombinePlan plan_device_rows(const CombineShape& shape, const CombineOptions& options,
                                   std::int64_t row_floats, int rank, int ranks) {
  DeviceCombinePlan plan = plan_rows(shape, options, rank, ranks);
  plan.row_floats = row_floats;
  plan.keeps_own = true;
  lay_out_messages(plan, options.participation);
  return plan;
}

std::vector<std::byte> device_table(const DeviceCombinePlan& plan) {
  std::vector<std::byte> table;
  const auto append = [&](const auto& values) {
    const auto bytes = std::as_bytes(std::span(values));
    table.insert(table.end(), bytes.begin(), bytes.end());
  };
  append(plan.sent);
  append(plan.received);
  append(plan.token_places);
  append(plan.owners);
  return table;
}

RowPlaces row_places(const DeviceCombinePlan& plan, const void* table) {
  const auto ranks = static_cast<std::size_t>(plan.ranks);
  const auto* messages = static_cast<const RowMessage*>(table);
  const auto* token_places = reinterpret_cast<const std::int32_t*>(messages + 2 * ranks);
  RowPlaces places{
      .rank = plan.rank,
      .ranks = plan.ranks,
      .tokens = static_cast<int>(plan.shape.tokens),
      .heads = static_cast<int>(plan.shape.heads),
      .divides_tokens = plan.scatter == Scatter::kTokens,
      .divides_heads = plan.scatter == Scatter::kHeads,
      .token_places = plan.token_places.empty() ? nullptr : token_places,
      .owners = plan.owners.empty() ? nullptr : token_places + plan.token_places.size(),
      .sent = messages,
      .received = messages + ranks,
      .few_sent = {},
      .few_received = {},
  };
  if (plan.ranks <= kMessagesInPlaces) {
    std::ranges::copy(plan.sent, places.few_sent);
    std::ranges::copy(plan.received, places.few_received);
  }
  return places;
}

}  // namespace kvmesh
