// Ranks with different options: all of them throw, and the error names the rank and the field.
#include "runtime/memory/cache_agreement.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh {
namespace {

constexpr int kRanks = 3;

// The error that each rank gets if the last one has other options; empty: none.
std::vector<std::string> told(
    const std::function<void(CacheOptions&)>& change,
    const std::function<void(CacheOptions&)>& on_all = [](CacheOptions&) {}) {
  std::vector<std::string> said(kRanks);
  run_on_threads(kRanks,
                 [&](Mesh& mesh) {
                   CacheOptions options = test::small_cache_options();
                   on_all(options);
                   if (mesh.rank().value == kRanks - 1) change(options);
                   try {
                     KvCache cache(mesh, options);
                   } catch (const InvalidArgument& error) {
                     said[static_cast<std::size_t>(mesh.rank().value)] = error.what();
                   }
                   KvCache(mesh, test::small_cache_options());  // the ranks still work
                 },
                 {.threads = 1, .deadline = std::chrono::seconds(30)});
  return said;
}

void expect_told(const std::vector<std::string>& said, const std::vector<std::string>& parts) {
  for (const std::string& rank : said) {
    for (const std::string& part : parts) {
      EXPECT_NE(rank.find(part), std::string::npos) << "'" << rank << "' lacks '" << part << "'";
    }
  }
}

TEST(CacheAgreement, NamesRankAndFieldThatDiffer) {
  expect_told(told([](auto& o) { o.layers = 3; }), {"layers is 2 on rank 0 and 3 on rank 2"});
  expect_told(told([](auto& o) { o.q_heads = 8; }), {"q_heads is 4", "8 on rank 2"});
  expect_told(told([](auto& o) { o.kv_heads = 4; }), {"kv_heads is 2", "4 on rank 2"});
  expect_told(told([](auto& o) { o.k_dim = 16; }), {"k_dim is 8", "16 on rank 2"});
  expect_told(told([](auto& o) { o.v_dim = 0; }), {"v_dim is 6", "8 on rank 2"});
  expect_told(told([](auto& o) { o.page_size = 8; }), {"page_size is 4", "8 on rank 2"});
  expect_told(told([](auto& o) { o.dtype = Dtype::kFloat16; }), {"float32", "float16 on rank 2"});
  expect_told(told([](auto& o) { o.page_kind = PageKind::kLatent; }),
              {"page_kind is kv", "latent on rank 2"});
  expect_told(told([](auto& o) { o.scales.kind = ScaleKind::kPerTensor; }),
              {"scales.kind is per token and head", "per tensor on rank 2"});
  expect_told(told([](auto& o) { o.scales.k = 0.5f; }), {"scales.k is 1 ", "0.5 on rank 2"});
  expect_told(told([](auto& o) { o.scales.v = 2; }), {"scales.v is 1 ", "2 on rank 2"});
  const auto heads = [](auto& o) {
    o.scales = {.kind = ScaleKind::kPerHead, .k_heads = {1, 2}, .v_heads = {3, 4}};
  };
  expect_told(told([](auto& o) { o.scales.k_heads[1] = 0.5f; }, heads),
              {"scales.k_heads and scales.v_heads is of hash", "on rank 2"});
  expect_told(told([](auto& o) { std::swap(o.scales.k_heads, o.scales.v_heads); }, heads),
              {"scales.k_heads and scales.v_heads is of hash", "on rank 2"});
  expect_told(told([](auto& o) { o.groups[0].scales->v_heads[0] = 0.5f; },
                   [&](auto& o) {
                     heads(o);
                     o.groups = {{.layers = {1}, .scales = o.scales}};
                   }),
              {"groups is of hash", "on rank 2"});
  expect_told(told([](auto& o) { o.placement = Placement::kStriped; }),
              {"placement is balanced", "striped on rank 2"});
  expect_told(told([](auto& o) { o.home_threshold_tokens = 7; }),
              {"home_threshold_tokens is 2048", "7 on rank 2"});
  expect_told(told([](auto& o) { o.reproducible = true; }),
              {"reproducible is 0 on rank 0 and 1 on rank 2"});
  const auto is_on = [](auto& o) { o.prefix.enabled = true; };
  expect_told(told([](auto& o) { o.prefix.enabled = false; }, is_on),
              {"prefix.enabled is 1 on rank 0 and 0 on rank 2"});
  expect_told(told([](auto& o) { o.prefix.hash = PrefixHash::kXxh3; }, is_on),
              {"prefix.hash is sha256_cbor on rank 0 and xxh3 on rank 2"});
  expect_told(told([](auto& o) { o.prefix.eviction = Eviction::kLru; }, is_on),
              {"prefix.eviction is hits on rank 0 and lru on rank 2"});
  expect_told(told([](auto& o) { o.prefix.compares_tokens = true; }, is_on),
              {"prefix.compares_tokens is 0 on rank 0 and 1 on rank 2"});
  expect_told(told([](auto& o) { o.prefix.seed = "7"; }, is_on),
              {"prefix.seed is of hash", "on rank 2"});
  const auto has_tiers = [&](auto& o) {
    is_on(o);
    o.tiers.host_bytes = 4096;
  };
  expect_told(told([](auto& o) { o.tiers.host_bytes = 8192; }, has_tiers),
              {"tiers.host_bytes is 4096 on rank 0 and 8192 on rank 2"});
  expect_told(told([](auto& o) { o.tiers.model = "other"; }, has_tiers),
              {"tiers.model is of hash", "on rank 2"});
  expect_told(told([](auto& o) { o.tiers.stores_per_operation = 5; }, has_tiers),
              {"tiers.stores_per_operation is", "5 on rank 2"});
  expect_told(told([](auto& o) { o.tiers.durable = true; }, has_tiers),
              {"tiers.durable is 0 on rank 0 and 1 on rank 2"});
  expect_told(told([](auto& o) { o.tiers.direct = true; }, has_tiers),
              {"tiers.direct is 0 on rank 0 and 1 on rank 2"});
  for (const auto& other : {std::pair<std::int64_t, double>{1 << 20, 0}, {0, 0.01}}) {
    expect_told(told([&](auto& o) {
                  o.pages_per_rank = 0;
                  o.bytes = other.first;
                  o.memory_fraction = other.second;
                }),
                {"the way to say the memory is pages_per_rank", "on rank 2"});
  }
}

TEST(CacheAgreement, ReportsOneRanksErrorOnAllRanks) {
  const std::vector<std::string> said = told([](auto& o) { o.k_dim = 577; });
  expect_told(said, {"577"});
  expect_told({said[0], said[1]}, {"the options of rank 2 are refused"});
}

TEST(CacheAgreement, NamesTheRankWhoseMemoryIsRefused) {
  const std::vector<std::string> many =
      told([](auto& o) { o.pages_per_rank = PageId::kMaxPagesPerRank + 1; });
  expect_told(many, {"pages_per_rank 4194305, at most 4194304"});
  EXPECT_NE(many[0].find("rank 2"), std::string::npos) << many[0];
  // Pools have whole pieces of the system, so less than one is too little for any page.
  const auto in_bytes = [](auto& o) {
    o.pages_per_rank = 0;
    o.bytes = 1 << 20;
  };
  expect_told(told([](auto& o) { o.bytes = 3257; }, in_bytes),
              {"in pieces of 4096", "rank 2 may use 3257"});
}

TEST(CacheAgreement, RejectsLatentValuesLongerThanKeys) {
  const std::vector<std::string> said = told([](auto& o) {
    o.page_kind = PageKind::kLatent;
    o.v_dim = 9;
  });
  expect_told(said, {"v_dim 9 is over k_dim 8"});
}

TEST(CacheAgreement, RejectsInvalidScales) {
  for (float scale : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    expect_told(told([&](auto& o) { o.scales.v = scale; }), {"the scale"});
    expect_told(told([&](auto& o) {
                  o.scales = {.kind = ScaleKind::kPerHead, .k_heads = {1, scale}};
                }),
                {"the scale"});
  }
}

TEST(CacheAgreement, RejectsAnotherNumberOfScalesThanOfHeads) {
  const auto with = [](PageKind kind, std::vector<float> k, std::vector<float> v) {
    return told(
        [&](auto& o) {
          o.page_kind = kind;
          o.scales = {.kind = ScaleKind::kPerHead, .k_heads = k, .v_heads = v};
        },
        [](auto& o) { o.dtype = Dtype::kFloat8E4M3; });
  };
  expect_told(with(PageKind::kKv, {}, {}), {"k_heads has 0 scales", "2 kv heads"});
  expect_told(with(PageKind::kKv, {1}, {1, 2}), {"k_heads has 1 scales", "2 kv heads"});
  expect_told(with(PageKind::kKv, {1, 2}, {1, 2, 3}), {"v_heads has 3 scales", "2 kv heads"});
  expect_told(with(PageKind::kLatent, {1, 2}, {1, 2}), {"v_heads has 2 scales", "of latent pages"});
  expect_told(told([](auto& o) {
                o.scales.k_heads = {1, 2};
              }),
              {"scales of heads, but their kind is per token and head"});
}

TEST(CacheAgreement, LetsTheAmountOfMemoryDiffer) {
  for (const std::string& said : told([](auto& o) { o.pages_per_rank = 9; })) EXPECT_EQ(said, "");
}

TEST(CacheAgreement, NamesDifferentHeadParallel) {
  // The first rank of two has a mesh of its own arrangement: 2 x 1, not 1 x 2.
  run_loopback(2, [](Communicator& world) {
    Mesh columns(world, {.head_parallel = 1, .threads = 1});
    Mesh row(world, {.head_parallel = 2, .threads = 1});
    Mesh& mine = world.rank().value == 0 ? columns : row;
    try {
      KvCache cache(mine, test::small_cache_options());
      ADD_FAILURE() << "made a cache on two meshes";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("head_parallel is 1 on rank 0 and 2 on rank 1"),
                std::string::npos)
          << error.what();
    }
  });
}

TEST(CacheAgreement, IdSpaceIsEqualOnAllRanksAndUniquePerCache) {
  std::mutex mutex;
  std::vector<std::vector<std::uint64_t>> ids(kRanks);
  run_on_threads(kRanks,
                 [&](Mesh& mesh) {
                   // A rank that has made more caches than the others still agrees with them.
                   if (mesh.rank().value == 1) {
                     Mesh alone(make_single_communicator(), {.threads = 1});
                     for (int i = 0; i < 5; ++i)
                       KvCache(alone, test::small_cache_options()).create();
                   }
                   std::vector<KvCache> caches;
                   for (int i = 0; i < 4; ++i)
                     caches.emplace_back(mesh, test::small_cache_options());
                   for (KvCache& cache : caches) {
                     const SequenceId id = cache.create();
                     for (KvCache& other : caches) {
                       EXPECT_EQ(other.allocator().contains(id), &other == &cache);
                     }
                     std::scoped_lock lock(mutex);
                     ids[static_cast<std::size_t>(mesh.rank().value)].push_back(id.value);
                   }
                   caches.front().check_replicas();
                 },
                 {.threads = 1});
  EXPECT_EQ(ids[0], ids[1]);
  EXPECT_EQ(ids[0], ids[2]);
}

TEST(CacheAgreement, DigestIgnoresTheIdSpace) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache one(mesh, test::small_cache_options()), two(mesh, test::small_cache_options());
  for (KvCache* cache : {&one, &two}) {
    const SequenceId a = cache->create();
    cache->reserve(a, 5);
    cache->erase(cache->fork(a));
  }
  EXPECT_EQ(one.allocator().digest(), two.allocator().digest());
}

}  // namespace
}  // namespace kvmesh
