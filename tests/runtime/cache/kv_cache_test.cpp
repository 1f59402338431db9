// The calls that a cache refuses; it is then unchanged.
#include <limits>

#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

class KvCacheErrors : public testing::Test {
 protected:
  void refuse_options(const CacheOptions& options) {
    EXPECT_THROW(KvCache(mesh_, options), InvalidArgument);
  }
  void refuse_plan(const std::vector<BatchEntry>& batch, const PlanOptions& options = {}) {
    expect_refused<InvalidArgument>(cache_, [&] { (void)cache_.plan(batch, options); });
    expect_refused<InvalidArgument>(cache_, [&] { (void)cache_.try_plan(batch, options); });
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  KvCache cache_{mesh_, small_cache_options()};
};

TEST_F(KvCacheErrors, RejectsInvalidSizes) {
  const CacheOptions good = small_cache_options();
  CacheOptions wrong = good;
  for (int CacheOptions::*size :
       {&CacheOptions::layers, &CacheOptions::q_heads, &CacheOptions::kv_heads,
        &CacheOptions::k_dim, &CacheOptions::page_size}) {
    for (int value : {0, -1}) {
      wrong = good;
      wrong.*size = value;
      refuse_options(wrong);
    }
  }
  wrong = good;
  wrong.v_dim = -1;
  refuse_options(wrong);
  wrong = good;
  wrong.q_heads = 5;  // two kv heads
  refuse_options(wrong);
  wrong = good;
  wrong.pages_per_rank = -1;
  refuse_options(wrong);
}

TEST_F(KvCacheErrors, RejectsDimsWithoutAKernelBeforeAnyPlan) {
  CacheOptions wide = small_cache_options();
  wide.k_dim = 577;
  refuse_options(wide);
  wide = small_cache_options();
  wide.v_dim = 577;
  refuse_options(wide);
}

TEST_F(KvCacheErrors, RejectsHeadsThatDoNotDivideOverTheMesh) {
  const auto body = [](Mesh& mesh) { KvCache cache(mesh, small_cache_options()); };
  EXPECT_NO_THROW(run_on_threads(2, body, {.head_parallel = 2}));
  EXPECT_THROW(run_on_threads(4, body, {.head_parallel = 4}), InvalidArgument);
}

TEST_F(KvCacheErrors, HasValuesAsWideAsKeysByDefault) {
  CacheOptions options = small_cache_options();
  options.v_dim = 0;
  KvCache cache(mesh_, options);
  EXPECT_EQ(cache.options().v_dim, 8);
  EXPECT_EQ(cache.pool(1).v.size(3), 8);
}

TEST_F(KvCacheErrors, HasOnePoolPerLayer) {
  const KvPool pool = cache_.pool(1);
  for (const TensorView& half : {pool.k, pool.v}) {
    EXPECT_EQ(half.size(0), 6);
    EXPECT_EQ(half.size(1), 2);
    EXPECT_EQ(half.size(2), 4);
  }
  EXPECT_EQ(pool.k.size(3), 8);
  EXPECT_EQ(pool.v.size(3), 6);
  EXPECT_NE(pool.k.data, cache_.pool(0).k.data);
  EXPECT_GE(cache_.pool_bytes(), 2 * 6 * 2 * 4 * (8 + 6) * 4);
  for (int layer : {-1, 2}) EXPECT_THROW(cache_.pool(layer), InvalidArgument);
}

TEST_F(KvCacheErrors, DescribesThePlanesOfItsPages) {
  const auto planes_of = [&](PageKind kind, const KvFormat& format) {
    CacheOptions options = small_cache_options();
    options.page_kind = kind;
    options.dtype = format.dtype;
    options.scales = format.scales;
    KvCache cache(mesh_, options);
    std::string text;
    const PagePlanes planes = cache.planes(1);
    for (std::size_t i = 0; i < planes.size(); ++i) {
      const PagePlane& plane = cache.page_format().planes[i];
      text += (i > 0 ? ", " : "") + std::string(plane.name) + " " + describe(planes[i]);
      EXPECT_EQ(planes[i].dtype, plane.dtype);
    }
    return text;
  };
  const KvFormat float32{.dtype = Dtype::kFloat32}, per_token{.dtype = Dtype::kFloat8E4M3};
  const KvFormat per_tensor{.dtype = Dtype::kFloat8E4M3, .scales = {ScaleKind::kPerTensor}};
  EXPECT_EQ(planes_of(PageKind::kKv, float32), "k float32 [6, 2, 4, 8], v float32 [6, 2, 4, 6]");
  EXPECT_EQ(planes_of(PageKind::kLatent, float32), "latent float32 [6, 2, 4, 8]");
  EXPECT_EQ(planes_of(PageKind::kKv, per_tensor),
            "k float8_e4m3 [6, 2, 4, 8], v float8_e4m3 [6, 2, 4, 6]");
  EXPECT_EQ(planes_of(PageKind::kKv, per_token),
            "k float8_e4m3 [6, 2, 4, 8], v float8_e4m3 [6, 2, 4, 6], k_scale float32 [6, 2, 4, 1], "
            "v_scale float32 [6, 2, 4, 1]");
  EXPECT_EQ(planes_of(PageKind::kLatent, per_token),
            "latent float8_e4m3 [6, 2, 4, 8], scale float32 [6, 2, 4, 1]");
}

/// Layer 1 is a group of latent pages.
CacheOptions options_with_head_scales() {
  CacheOptions options = small_cache_options();
  options.kv_heads = 4;
  options.pages_per_rank = 400;
  options.dtype = Dtype::kFloat8E4M3;
  options.scales = {.kind = ScaleKind::kPerHead, .k_heads = {1, 2, 3, 4}, .v_heads = {5, 6, 7, 8}};
  options.groups = {{.layers = {1},
                     .kv_heads = 2,
                     .page_kind = PageKind::kLatent,
                     .scales = KvScales{.kind = ScaleKind::kPerHead, .k_heads = {9, 10}}}};
  return options;
}

/// `scale` is that of this many heads, which count on from `first`.
void expect_scales(const BasicRowScale<ConstTensorView>& scale, int heads, int first) {
  const ConstTensorView& each = scale.per_token;
  EXPECT_EQ(describe(each), "float32 [400, " + std::to_string(heads) + ", 4, 1]");
  EXPECT_EQ(each.strides, (std::array<std::int64_t, 4>{0, 1, 0, 1}));
  for (int head = 0; head < heads; ++head) {
    EXPECT_EQ(static_cast<const float*>(each.data)[head], static_cast<float>(first + head));
  }
}

/// Each head rank has the scales of its heads, for its own pages and for those of other ranks; also
/// when memory of the pages around them was given back.
TEST(KvCache, ScalesPerHeadLieBesideThePages) {
  run_on_threads(4,
                 [](Mesh& mesh) {
                   KvCache cache(mesh, options_with_head_scales());
                   EXPECT_EQ(cache.page_format().planes.size(), 2u);
                   const int head = mesh.head_rank();
                   for (const std::int64_t pages : {400, 1}) {
                     for (PageRank rank{0}; rank.value < mesh.kv_parallel(); ++rank.value) {
                       cache.resize(rank, pages);
                     }
                     for (Rank rank{0}; rank.value < mesh.kv_parallel(); ++rank.value) {
                       const ConstKvPool kv = cache.peer_pool(rank, 0).value();
                       expect_scales(kv.k_scale, 2, 1 + 2 * head);
                       expect_scales(kv.v_scale, 2, 5 + 2 * head);
                       const ConstKvPool latent = cache.peer_pool(rank, 1).value();
                       expect_scales(latent.k_scale, 1, 9 + head);
                       expect_scales(latent.v_scale, 1, 9 + head);
                     }
                   }
                 },
                 {.head_parallel = 2, .threads = 1});
}

TEST_F(KvCacheErrors, OutOfPagesReportsCountsAndChangesNothing) {
  const SequenceId a = cache_.create(), b = cache_.create();
  fill(cache_, a, 14);
  fill(cache_, b, 3);
  const std::vector<BatchEntry> batch{{a, 3}, {b, 6}};  // one page and two; one is free
  EXPECT_EQ(cache_.pages_needed(batch), 3);
  EXPECT_EQ(cache_.pages_needed({{b, 1}}), 0);
  expect_refused<InvalidArgument>(cache_, [&] { (void)cache_.pages_needed({{a, 1}, {a, 1}}); });
  expect_refused<UnknownSequence>(cache_, [&] { (void)cache_.pages_needed({{SequenceId{}, 1}}); });
  expect_refused<InvalidArgument>(cache_, [&] { (void)cache_.pages_needed({{a, 1}}, 1); });
  expect_refused<OutOfPages>(cache_, [&] { (void)cache_.plan(batch); });
  try {
    (void)cache_.plan(batch);
  } catch (const OutOfPages& full) {
    EXPECT_EQ(full.asked_pages(), 3);
    EXPECT_EQ(full.free_pages(), 1);
  }
  const CacheImage before(cache_);
  const Result<StepPlan> refused = cache_.try_plan(batch);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.reason().asked_pages(), 3);
  EXPECT_EQ(refused.reason().free_pages_per_rank(), std::vector<std::int64_t>{1});
  EXPECT_FALSE(cache_.try_reserve(a, 100));
  EXPECT_EQ(CacheImage(cache_), before);
  expect_refused<OutOfPages>(cache_, [&] { cache_.reserve(a, 100); });
  fill(cache_, a, 2);  // the cache still works
  EXPECT_EQ(cache_.allocator().length(a), 16);
}

TEST_F(KvCacheErrors, RejectsUnknownSequences) {
  const SequenceId gone = cache_.create(), here = cache_.create();
  fill(cache_, gone, 2);
  cache_.erase(gone);
  const std::vector<BatchEntry> batch{{here, 1}, {gone, 1}};
  expect_refused<UnknownSequence>(cache_, [&] { (void)cache_.plan(batch); });
  expect_refused<UnknownSequence>(cache_, [&] { (void)cache_.try_plan(batch); });
  expect_refused<UnknownSequence>(cache_, [&] { cache_.fork(gone); });
  expect_refused<UnknownSequence>(cache_, [&] { cache_.truncate(gone, 0); });
  expect_refused<UnknownSequence>(cache_, [&] { cache_.erase(gone); });
  expect_refused<UnknownSequence>(cache_, [&] { cache_.reserve(gone, 1); });
}

TEST_F(KvCacheErrors, RejectsInvalidBatches) {
  const SequenceId a = cache_.create(), b = cache_.create();
  fill(cache_, a, 6);
  refuse_plan({{a, 1}, {b, 1}, {a, 1}});  // twice
  refuse_plan({{a, -1, 0}});
  refuse_plan({{a, 1, 8}});  // more queries than tokens
  refuse_plan({{b, 0, 1}});
  refuse_plan({{a, std::int64_t{1} << 40, 0}});  // past int32 positions
  refuse_plan({{a, 1}, {b, 1}}, {.q_positions = {1}});
  refuse_plan({{a, 2}}, {.q_positions = {0, -1}});
  refuse_plan({{a, 1}}, {.q_positions = {(std::int64_t{1} << 31) - 1}});
  refuse_plan({{a, 1}}, {.limits = StepLimits{.sequences = std::int64_t{1} << 42}});
  const auto most = std::numeric_limits<std::int64_t>::max();
  refuse_plan({{a, 1}}, {.limits = StepLimits{.sequences = most, .query_tokens = most}});
}

TEST_F(KvCacheErrors, RejectsInvalidLengthsOfTruncate) {
  const SequenceId a = cache_.create();
  fill(cache_, a, 6);
  const std::vector<BatchEntry> batch{{a, 0, 1}};
  const StepPlan step = cache_.plan(batch, {.limits = StepLimits{.sequences = 1}});
  expect_refused<InvalidArgument>(cache_, [&] { cache_.truncate(a, 7); });
  expect_refused<InvalidArgument>(cache_, [&] { cache_.truncate(a, -1); });
  EXPECT_TRUE(step.participation().has(0, {0}));  // computed at the first call
}

TEST_F(KvCacheErrors, RejectsBlockMasksOfOtherBatches) {
  const SequenceId a = cache_.create(), b = cache_.create();
  fill(cache_, a, 6);
  fill(cache_, b, 5);
  const std::vector<BatchEntry> batch{{a, 2, 3}, {b, 1}};
  const BlockMaskShape good{
      .batch = 2, .heads = 4, .q_len = 3, .kv_len = 8, .q_block = 2, .kv_block = 4};
  const auto refuse = [&](const BlockMaskShape& shape) {
    const BlockMask mask = BlockMask::create(mods::no_mask(), shape);
    refuse_plan(batch, {.block_mask = &mask});
  };
  BlockMaskShape wrong = good;
  wrong.kv_block = 8;  // not the page size
  refuse(wrong);
  wrong = good;
  wrong.batch = 3;
  refuse(wrong);
  wrong = good;
  wrong.heads = 2;
  refuse(wrong);
  wrong = good;
  wrong.q_len = 2;  // sequence a has three queries
  refuse(wrong);
  const BlockMask right = BlockMask::create(mods::no_mask(), good);
  EXPECT_EQ(cache_.plan(batch, {.block_mask = &right}).query_tokens(), 4);
}

TEST(KvCache, IgnoresTheHeadsOfStatesUnderABlockMask) {
  Mesh mesh(make_single_communicator());
  CacheOptions options = small_cache_options();
  options.groups = {{.layers = {1}, .q_heads = 2, .state_bytes = 16}};
  KvCache cache(mesh, options);
  const BlockMask mask = BlockMask::create(
      mods::causal(), {.heads = 4, .q_len = 4, .kv_len = 4, .q_block = 4, .kv_block = 4});
  EXPECT_EQ(cache.plan({{cache.create(), 4}}, {.block_mask = &mask}).query_tokens(), 4);
}

/// A later step may have queries at earlier positions again.
TEST(KvCacheWindow, AStepWithoutNewTokensGivesNothingUp) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = small_cache_options();
  options.window = 4;
  KvCache cache(mesh, options);
  const SequenceId id = cache.create();
  fill(cache, id, 12);
  cache.plan({{id, 0, 1}});
  EXPECT_EQ(cache.allocator().released_pages(id), 0);
  EXPECT_NO_THROW(cache.plan({{id, 0, 12}}));
  cache.plan({{id, 1}});
  EXPECT_EQ(cache.allocator().released_pages(id), 2) << "the query at 12 sees from position 9";
}

}  // namespace
}  // namespace kvmesh::test
