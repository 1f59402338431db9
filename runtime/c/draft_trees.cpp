// Draft trees of the C interface.
#include <span>
#include <vector>

#include "runtime/c/guard.hpp"
#include "runtime/c/handles.hpp"

using namespace kvmesh;
using namespace kvmesh::c;

kvmesh_status_t kvmesh_draft_trees_create(int32_t rows, int32_t most_tokens,
                                          kvmesh_draft_trees_t** trees) {
  return guarded([&] {
    kvmesh_draft_trees_t*& made = checked(trees, "trees");
    made = new kvmesh_draft_trees{mods::DraftTrees(rows, most_tokens)};
  });
}

void kvmesh_draft_trees_destroy(kvmesh_draft_trees_t* trees) { delete trees; }

kvmesh_status_t kvmesh_draft_trees_set(kvmesh_draft_trees_t* trees, int32_t row, int64_t first,
                                       const int32_t* parents, size_t count) {
  return guarded([&] {
    require(count == 0 || parents != nullptr, "parents is NULL");
    mods::DraftTrees& of = checked(trees, "trees").trees;
    count == 0 ? of.clear(row) : of.set(row, first, std::span(parents, count));
  });
}

kvmesh_status_t kvmesh_draft_trees_mask(const kvmesh_draft_trees_t* trees, kvmesh_mask_t** mask) {
  return guarded([&] {
    kvmesh_mask_t*& made = checked(mask, "mask");
    const MaskMod mod = checked(trees, "trees").trees.mask();
    made = new kvmesh_mask{mod, mod.to_string()};
  });
}

kvmesh_status_t kvmesh_cache_compact(kvmesh_cache_t* cache, const kvmesh_kept_tokens_t* batch,
                                     size_t batch_count, void* stream) {
  return guarded([&] {
    require(batch_count == 0 || batch != nullptr, "batch is NULL");
    std::vector<KeptTokens> tokens;
    for (const kvmesh_kept_tokens_t& given : std::span(batch, batch_count)) {
      require(given.kept_count == 0 || given.kept != nullptr, "kept is NULL");
      tokens.push_back({SequenceId(given.sequence), given.begin,
                        std::vector<std::int64_t>(given.kept, given.kept + given.kept_count)});
    }
    checked(cache, "cache").cache.compact(tokens, Stream{stream});
  });
}
