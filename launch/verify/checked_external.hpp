// A cache's pages, read as those of an engine that owns them.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kvmesh/external_pool.hpp"
#include "launch/verify/engine_pages.hpp"

namespace kvmesh::verify {

/// The positions that each query of a step sees: PageTables::token_lists.
struct TokenLists {
  std::vector<std::int32_t> positions{};  ///< [queries, length]; -1: none
  std::int64_t length = 0;                ///< 0: there are no lists

  bool empty() const { return length == 0; }
  /// REQUIRES: lists.
  bool has(std::int64_t query, std::int32_t position) const;
};

/// Makes plans over page tables of a cache's sequences.
class CheckedExternal {
 public:
  /// The cache outlives it.
  explicit CheckedExternal(KvCache& cache) : cache_(cache) {}

  /// Plans one layer of a step that the cache has planned, and which has not run. Without lists the
  /// plan may also write the step's new tokens. Page tables have no list of logical pages where one
  /// rank has them all. Collective.
  ExternalPlan plan(int layer, std::span<const BatchEntry> batch, const PlanOptions& options,
                    const TokenLists& lists);

  /// Pages of an engine, and the kernels over them.
  struct Engine {
    EnginePages pages;
    ExternalPool pool;
  };
  /// Returns the engine's pages for layers like this one; null if they cannot take the batch, or
  /// the plan. The same on every rank.
  Engine* engine_for(int layer, const EngineForm& form, std::span<const EngineSequence> batch,
                     const PlanOptions& options, const TokenLists& lists);

 private:
  ExternalPool& pool_of(int layer);
  Engine& engine_of(int layer, const EngineForm& form);
  int local_q_heads(int layer) const;

  KvCache& cache_;
  std::map<int, ExternalPool> pools_;  // by layer group
  std::map<int, Engine> engines_;      // by layer group
};

}  // namespace kvmesh::verify
