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
  return pools_
      .try_emplace(group, cache_.mesh(), cache_.pool(layer),
                   ExternalPoolOptions{.q_heads = local_q_heads(layer)})
      .first->second;
}

int CheckedExternal::local_q_heads(int layer) const {
  const int q_heads = cache_.group_options(cache_.group_of(layer)).q_heads;
  return q_heads / cache_.mesh().head_parallel();
}

CheckedExternal::Engine& CheckedExternal::engine_of(int layer, const EngineForm& form) {
  const int group = cache_.group_of(layer);
  const auto known = engines_.find(group);
  if (known != engines_.end() && known->second.pages.form() == form) return known->second;
  Mesh& mesh = cache_.mesh();
  const CacheOptions& options = cache_.group_options(group);
  // Forks do not share pages here, so the engine needs more pages than the cache.
  const std::int64_t pages = 2 * options.pages_per_rank + 8;
  EnginePages made(mesh, cache_.pool(layer),
                   share_of(options.kv_heads, mesh.head_rank(), mesh.head_parallel()), form, pages);
  ExternalPool pool(mesh, made.on_device(),
                    {.q_heads = local_q_heads(layer), .interleave = form.interleave});
  engines_.erase(group);
  return engines_.emplace(group, Engine{std::move(made), std::move(pool)}).first->second;
}

CheckedExternal::Engine* CheckedExternal::engine_for(int layer, const EngineForm& form,
                                                     std::span<const EngineSequence> batch,
                                                     const PlanOptions& options,
                                                     const TokenLists& lists) {
  const bool divides = form.interleave > 0 && cache_.mesh().kv_parallel() > 1 &&
                       form.interleave < cache_.options().page_size;
  if (divides && options.block_mask) return nullptr;
  if ((divides || !lists.empty()) && !can_be_divided(cache_.pool(layer), form)) return nullptr;
  Engine& engine = engine_of(layer, form);
  return engine.pages.have_room_for(batch) ? &engine : nullptr;
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
