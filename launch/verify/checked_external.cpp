#include "launch/verify/checked_external.hpp"

#include <algorithm>
#include <vector>

namespace kvmesh::verify {

bool TokenLists::has(std::int64_t query, std::int32_t position) const {
  const auto begin = positions.begin() + query * length;
  return std::find(begin, begin + length, position) != begin + length;
}

ExternalPool& CheckedExternal::pool_of(int layer) {
  const int group = cache_.group_of(layer);
  const auto known = pools_.find(group);
  if (known != pools_.end()) return known->second;
  Mesh& mesh = cache_.mesh();
  const int q_heads = cache_.group_options(group).q_heads / mesh.head_parallel();
  return pools_
      .try_emplace(group, mesh, cache_.pool(layer), ExternalPoolOptions{.q_heads = q_heads})
      .first->second;
}

ExternalPlan CheckedExternal::plan(int layer, std::span<const BatchEntry> batch,
                                   const PlanOptions& options, const TokenLists& lists) {
  std::vector<BatchEntry> there(batch.begin(), batch.end());  // the cache has appended the tokens
  std::vector<std::int32_t> appended;
  for (BatchEntry& entry : there) {
    if (entry.query_tokens < 0) entry.query_tokens = entry.append_tokens;
    appended.push_back(static_cast<std::int32_t>(entry.append_tokens));
    entry.append_tokens = 0;
  }
  Mesh& mesh = cache_.mesh();
  const int group = cache_.group_of(layer);
  const CacheTables of_cache(cache_, mesh.page_rank(), there, group);
  PageTables tables = of_cache.view();
  if (mesh.kv_parallel() == 1 && cache_.group_options(group).window == 0) tables.logical.reset();
  if (lists.empty()) tables.appended = appended;
  tables.token_lists = lists.positions;
  tables.list_length = lists.length;
  return pool_of(layer).plan(tables, options);
}

}  // namespace kvmesh::verify
