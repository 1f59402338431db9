// Token lists over a cache's own sequences: what a mask over the same positions gives.
#include <gtest/gtest.h>

#include <algorithm>

#include "kvmesh/external_pool.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

using Floats = std::vector<float>;

struct ListedRows {
  Floats o = Floats(3 * 4 * 6), lse = Floats(3 * 4);
  CombineOutput output() {
    return {.o = tensor(o.data(), {3, 4, 6}), .lse = tensor(lse.data(), {3, 4})};
  }
};

TEST(CacheTables, GiveTokenListsOfACache) {
  run_on_threads(
      3,
      [](Mesh& mesh) {
        CacheOptions options = small_cache_options();
        options.placement = Placement::kStriped;
        KvCache cache(mesh, options);
        Random random(5);
        const SequenceId first = cache.create(), second = cache.create();
        Floats k = random.reals(28 * 2 * 8), v = random.reals(28 * 2 * 6);
        StepPlan append = cache.plan({{first, 21, 0}, {second, 7, 0}});
        append.append(1, tensor(k.data(), {28, 2, 8}), tensor(v.data(), {28, 2, 6}));

        // Two queries of the first sequence and one of the second.
        const std::vector<BatchEntry> batch{{first, 0, 2}, {second, 0, 1}};
        const std::vector<std::int32_t> lists{20, 3, 0, 9, -1, 17, 3, -1, 6, -1, -1, 2};
        const MaskMod listed([](auto b, auto, auto q, auto kv) {
          const auto newest = kv == 17 || kv == 3;
          const auto before = kv == 20 || kv == 3 || kv == 0 || kv == 9;
          return (b == 0 && ((q == 20 && newest) || (q == 19 && before))) ||
                 (b == 1 && (kv == 6 || kv == 2));
        });
        Floats q = random.reals(3 * 4 * 8);
        const ConstTensorView queries = tensor(q.data(), {3, 4, 8});
        ListedRows want, got;
        cache.plan(batch, {.mask = listed}).run(1, {.q = queries}, want.output());

        const CacheTables tables(cache, mesh.page_rank(), batch);
        PageTables view = tables.view();
        view.token_lists = lists;
        view.list_length = 4;
        ExternalPool pool(mesh, cache.pool(1), {.q_heads = 4});
        pool.plan(view, {.mask = MaskMod{}}).run(cache.pool(1), {.q = queries}, got.output());
        for (std::size_t i = 0; i < got.o.size(); ++i) EXPECT_NEAR(got.o[i], want.o[i], 1e-5);
        for (std::size_t i = 0; i < got.lse.size(); ++i) EXPECT_NEAR(got.lse[i], want.lse[i], 1e-5);

        EXPECT_THROW(CacheTables(cache, mesh.page_rank(), std::vector<BatchEntry>{{first, 1, 1}}),
                     InvalidArgument);
        EXPECT_THROW(CacheTables(cache, mesh.page_rank(), std::vector<BatchEntry>{{second, 0, 8}}),
                     InvalidArgument);
        EXPECT_THROW(CacheTables(cache, mesh.page_rank(), std::vector<BatchEntry>{{second, 0}}),
                     InvalidArgument);
      },
      {.threads = 1});
}

}  // namespace
}  // namespace kvmesh::test
