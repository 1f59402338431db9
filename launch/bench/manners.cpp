#include "launch/bench/manners.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "kvmesh/draft_trees.hpp"

namespace kvmesh::bench {
namespace {

using Sees = decltype(Seen::sees);

/// The newest tokens of each sequence as a tree.
MaskMod tree_mask(std::span<const std::int64_t> lengths, std::int64_t queries, int children) {
  mods::DraftTrees trees(static_cast<int>(lengths.size()), static_cast<int>(queries));
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const std::int64_t tokens = std::min(queries, lengths[i]);
    trees.set(static_cast<int>(i), lengths[i] - tokens, tree_parents(tokens, children));
  }
  return trees.mask();
}

bool has_ancestor(const std::vector<std::int32_t>& parents, std::int64_t token,
                  std::int64_t ancestor) {
  while (token > ancestor) token = parents[static_cast<std::size_t>(token)];
  return token == ancestor;
}

Sees seen_in_trees(std::span<const std::int64_t> lengths, std::int64_t queries, int children) {
  return [=](std::size_t sequence, std::int64_t query, std::int64_t position) {
    const std::int64_t tokens = std::min(queries, lengths[sequence]);
    const std::int64_t in_tree = position - (lengths[sequence] - tokens);
    return in_tree < 0 || has_ancestor(tree_parents(tokens, children), query, in_tree);
  };
}

Sees seen_in_lists(std::span<const std::int64_t> lengths, std::int64_t queries,
                   std::int64_t count) {
  return [=, lists = draw_lists(lengths, queries, count)](std::size_t sequence, std::int64_t query,
                                                          std::int64_t position) {
    const std::int64_t row = newest(lengths.first(sequence), queries) + query;
    const auto list = std::span(lists).subspan(static_cast<std::size_t>(row * count),
                                               static_cast<std::size_t>(count));
    return std::ranges::find(list, position) != list.end();
  };
}

/// Ten operations.
auto mod_of(int heads) {
  std::vector<float> slopes;
  for (int head = 1; head <= heads; ++head)
    slopes.push_back(std::exp2(-8.0f * static_cast<float>(head) / static_cast<float>(heads)));
  return [slopes = Buffer<float>(slopes)](auto score, auto, auto h, auto q, auto kv) {
    const auto capped = 30.0f * tanh(score / 30.0f);
    return where(kv < 4, capped, capped + slopes[h] * to_float(kv - q));
  };
}

ExternalPlan plan_tables(Workload& workload, ExternalPool& pool, const Options& options,
                         std::int64_t queries, std::span<const std::int32_t> lists) {
  const CacheTables of_cache(workload.cache(), workload.mesh().page_rank(),
                             workload.queried(queries));
  PageTables tables = of_cache.view();
  if (!lists.empty()) {
    tables.token_lists = lists;
    tables.list_length = options.token_list;
  }
  return pool.plan(tables, plan_options(workload, options, queries));
}

}  // namespace

bool has_manner(Op op, Manner manner) {
  switch (manner) {
    case Manner::kTables:
    case Manner::kNhd:
      return op == Op::kDecode || op == Op::kPrefill;
    case Manner::kSinks:
    case Manner::kMod:
    case Manner::kFixed:
      return op == Op::kDecode || op == Op::kPrefill || op == Op::kStep;
    case Manner::kList:
      return op == Op::kDecode;
    case Manner::kTree:
      return op == Op::kDecode || op == Op::kStep;
    case Manner::kLimits:
      return op == Op::kStep;
    case Manner::kPlain:
      break;
  }
  return false;
}

bool is_by_tables(Manner manner) {
  return manner == Manner::kTables || manner == Manner::kNhd || manner == Manner::kList;
}

std::string_view name(Manner manner) {
  constexpr std::array<std::string_view, 9> kNames{"",     "tables", "nhd",   "sinks", "list",
                                                   "tree", "mod",    "fixed", "limits"};
  return kNames.at(static_cast<std::size_t>(manner));
}

PlanOptions plan_options(const Options& options) {
  return {.scatter = options.scatter,
          .strategy = options.strategy,
          .way = options.way,
          .travels_as = options.travels_as,
          .shares_prefixes = options.shares_prefixes,
          .least_saved_tokens = 1};
}

PlanOptions plan_options(const Workload& workload, const Options& options, std::int64_t queries) {
  PlanOptions how = plan_options(options);
  if (options.manner == Manner::kTree) {
    how.mask = tree_mask(workload.lengths(), queries, options.tree);
  }
  if (options.manner == Manner::kMod) how.score = mod_of(options.shape.q_heads);
  if (options.manner == Manner::kFixed) how.fixed_split_tokens = options.fixed_split;
  if (options.manner == Manner::kLimits) {
    const WorkloadShape& shape = workload.shape();
    // For sequences of twice the length.
    how.limits = StepLimits{.sequences = shape.batch,
                            .query_tokens = queries,
                            .pages = 2 * pages_per_rank(shape, workload.mesh().kv_parallel())};
  }
  return how;
}

Sees seen_by(const Workload& workload, const Options& options, std::int64_t queries) {
  switch (options.manner) {
    case Manner::kTree:
      return seen_in_trees(workload.lengths(), queries, options.tree);
    case Manner::kList:
      return seen_in_lists(workload.lengths(), queries, options.token_list);
    case Manner::kPlain:
    case Manner::kTables:
    case Manner::kNhd:
    case Manner::kSinks:
    case Manner::kMod:
    case Manner::kFixed:
    case Manner::kLimits:
      break;
  }
  return {};
}

decltype(Seen::score) score_of(const Options& options) {
  if (options.manner != Manner::kMod) return {};
  return [mod = mod_of(options.shape.q_heads)](double score, int head, std::int64_t query,
                                               std::int64_t key) {
    return mod(score, 0, head, static_cast<int>(query), static_cast<int>(key));
  };
}

std::vector<std::int32_t> tree_parents(std::int64_t tokens, int children) {
  std::vector<std::int32_t> parents;
  for (std::int32_t i = 0; i < tokens; ++i) parents.push_back(i / children - 1);
  return parents;
}

std::vector<std::int32_t> draw_lists(std::span<const std::int64_t> lengths, std::int64_t queries,
                                     std::int64_t count) {
  std::mt19937_64 random(3);
  std::vector<std::int32_t> lists;
  for (const std::int64_t length : lengths) {
    for (std::int64_t seen = length - std::min(queries, length) + 1; seen <= length; ++seen) {
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t begin = seen < count ? i : i * seen / count;
        const std::int64_t end = seen < count ? i + 1 : (i + 1) * seen / count;
        const auto drawn =
            begin + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(end - begin));
        lists.push_back(drawn < seen ? static_cast<std::int32_t>(drawn) : -1);
      }
    }
  }
  return lists;
}

KvPool pool_of(KvCache& cache, int layer, Manner manner) {
  KvPool pool = cache.pool(layer);
  if (manner != Manner::kNhd) return pool;
  for (TensorView* plane : {&pool.k, &pool.v, &pool.k_scale.per_token, &pool.v_scale.per_token}) {
    const std::int64_t row = plane->stride(2);
    if (plane->empty() || row == 0) continue;  // scales per head are in no page
    plane->strides[1] = row;
    plane->strides[2] = plane->size(1) * row;
  }
  return pool;
}

Tables::Tables(Workload& workload, const Options& options, std::int64_t queries)
    : cache_(workload.cache()),
      manner_(options.manner),
      lists_(options.manner == Manner::kList
                 ? draw_lists(workload.lengths(), queries, options.token_list)
                 : std::vector<std::int32_t>{}),
      pool_(workload.mesh(), pool_of(cache_, 0, manner_),
            {.q_heads = options.shape.q_heads / workload.mesh().head_parallel()}),
      plan_(plan_tables(workload, pool_, options, queries, lists_)) {}

}  // namespace kvmesh::bench
