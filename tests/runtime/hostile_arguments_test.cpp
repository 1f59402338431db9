// Every public call × every argument × invalid values: throws an error of kvmesh's own and changes
// nothing.
#include "tests/support/hostile.hpp"

#include <chrono>
#include <cmath>

#include "kvmesh/kvmesh.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

using std::chrono::milliseconds;

// Two queries and two new tokens of small_cache_options().
struct Tensors {
  std::vector<float> memory = std::vector<float>(1024, 0.5f);
  TensorView at(std::int64_t offset, std::initializer_list<std::int64_t> shape) {
    return tensor(memory.data() + offset, shape);
  }
  TensorView q = at(0, {2, 4, 8}), k = at(100, {2, 2, 8}), v = at(200, {2, 2, 6});
  TensorView o = at(300, {2, 4, 6}), lse = at(400, {2, 4});
  TensorView mine_o = at(500, {2, 4, 6}), mine_lse = at(600, {2, 4});
};

class HostileArguments : public testing::Test {
 protected:
  void refuse_plan(const BatchEntry& entry, const PlanOptions& options = {}) {
    const std::vector<BatchEntry> batch{entry};
    expect_refused<InvalidArgument>(cache_, [&] { (void)cache_.plan(batch, options); });
    expect_refused<InvalidArgument>(cache_, [&] { (void)cache_.try_plan(batch, options); });
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  KvCache cache_{mesh_, small_cache_options()};
  SequenceId sequence_ = cache_.create();
  Tensors t_;
};

// With limits the backend takes the first tokens of larger tensors: the checks are others.
void refuse_tensors_of_steps(KvCache& cache, StepPlan& step, Tensors& t) {
  const CacheImage before(cache);
  const auto run = [&](const ConstTensorView& q, const ConstTensorView& k,
                       const ConstTensorView& v) {
    step.run(0, {q, k, v}, {t.o, t.lse});
  };
  const Partial mine{t.mine_o, t.mine_lse};
  const auto in = spoils<TensorView>();
  const auto out = output_spoils();
  std::vector<Spoil<TensorView>> lse_out = out;
  lse_out.erase(lse_out.begin());  // no memory: no merged LSE

  expect_refuses("run: q", t.q, in, [&](const TensorView& q) { run(q, t.k, t.v); });
  expect_refuses("run: k", t.k, in, [&](const TensorView& k) { run(t.q, k, t.v); });
  expect_refuses("run: v", t.v, in, [&](const TensorView& v) { run(t.q, t.k, v); });
  expect_refuses("run: o", t.o, out, [&](const TensorView& o) {
    step.run(0, {t.q, t.k, t.v}, {o, t.lse});
  });
  expect_refuses("run: lse", t.lse, lse_out, [&](const TensorView& lse) {
    step.run(0, {t.q, t.k, t.v}, {t.o, lse});
  });
  expect_refuses("append: k", t.k, in, [&](const TensorView& k) { step.append(0, k, t.v); });
  expect_refuses("append: v", t.v, in, [&](const TensorView& v) { step.append(0, t.k, v); });
  expect_refuses("attend: q", t.q, in,
                 [&](const TensorView& q) { step.attend_partial(0, q, mine); });
  expect_refuses("attend: o", t.mine_o, out, [&](const TensorView& o) {
    step.attend_partial(0, t.q, {o, t.mine_lse});
  });
  expect_refuses("attend: lse", t.mine_lse, out, [&](const TensorView& lse) {
    step.attend_partial(0, t.q, {t.mine_o, lse});
  });
  const TensorView all = t.at(700, {2, 4, 8});
  expect_refuses("gather_queries: share", t.q, in,
                 [&](const TensorView& share) { step.gather_queries(0, share, all); });
  expect_refuses("gather_queries: q", all, out,
                 [&](const TensorView& q) { step.gather_queries(0, t.q, q); });
  expect_refuses("combine: mine.o", t.mine_o, out, [&](const TensorView& o) {
    step.combine({o, t.mine_lse}, {t.o, t.lse});
  });
  expect_refuses("combine: mine.lse", t.mine_lse, out, [&](const TensorView& lse) {
    step.combine({t.mine_o, lse}, {t.o, t.lse});
  });
  expect_refuses("combine: o", t.o, out, [&](const TensorView& o) {
    step.combine(mine, {o, t.lse});
  });
  expect_refuses("combine: lse", t.lse, lse_out, [&](const TensorView& lse) {
    step.combine(mine, {t.o, lse});
  });

  TensorView narrow = t.v;
  narrow.dtype = Dtype::kFloat16;
  EXPECT_THROW(run(t.q, t.k, narrow), InvalidArgument) << "k and v of two types";
  for (int layer : {kLeastInt, -1, 2, kMostInt}) {
    EXPECT_THROW(step.run(layer, {t.q, t.k, t.v}, {t.o, t.lse}), InvalidArgument) << layer;
  }
  EXPECT_EQ(CacheImage(cache), before);
  EXPECT_NO_THROW(run(t.q, t.k, t.v));
  EXPECT_NO_THROW(step.combine(mine, {t.o, {}}));
}

TEST_F(HostileArguments, TensorsOfAStep) {
  StepPlan step = cache_.plan({{sequence_, 2}});
  refuse_tensors_of_steps(cache_, step, t_);
}

TEST_F(HostileArguments, TensorsOfAStepWithLimits) {
  StepPlan step =
      cache_.plan({{sequence_, 1}}, {.limits = StepLimits{.sequences = 2, .query_tokens = 1}});
  refuse_tensors_of_steps(cache_, step, t_);
}

TEST_F(HostileArguments, BatchEntries) {
  for (std::int64_t tokens : {kLeast, std::int64_t{-1}, std::int64_t{1} << 31, kMost}) {
    refuse_plan({sequence_, tokens, 0});
  }
  for (std::int64_t queries : {kLeast, std::int64_t{-2}, std::int64_t{3}, kMost}) {
    refuse_plan({sequence_, 2, queries});
  }
}

TEST_F(HostileArguments, InvalidPlanOptions) {
  for (float scale : {kNan, kInfinity, -kInfinity}) refuse_plan({sequence_, 1}, {.scale = scale});
  refuse_plan({sequence_, 1}, {.scatter = static_cast<Scatter>(99)});
  refuse_plan({sequence_, 1}, {.way = static_cast<WayKind>(99)});
  refuse_plan({sequence_, 1}, {.way = WayKind::kPeer});  // these ranks do not have it
  refuse_plan({sequence_, 1}, {.travels_as = static_cast<Dtype>(99)});
  for (const std::int64_t tokens : {kLeast, kMost, std::int64_t{-128}, std::int64_t{100}}) {
    refuse_plan({sequence_, 1}, {.fixed_split_tokens = tokens});
  }
  refuse_plan({sequence_, 1}, {.strategy = static_cast<CombineStrategy>(99)});
  for (std::int64_t position : {kLeast, std::int64_t{-1}, kMost}) {
    refuse_plan({sequence_, 1}, {.q_positions = {position}});
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, kMost}) {
    refuse_plan({sequence_, 1}, {.limits = StepLimits{.sequences = bad}});
    refuse_plan({sequence_, 1}, {.limits = StepLimits{.sequences = 2, .query_tokens = bad}});
    refuse_plan({sequence_, 1}, {.limits = StepLimits{.sequences = 1, .pages = bad}});
  }
}

TEST_F(HostileArguments, UnknownIds) {
  KvCache draft(mesh_, small_cache_options());
  const SequenceId foreign = draft.create(), stale = cache_.create();
  cache_.erase(stale);
  EXPECT_EQ(foreign.slot(), sequence_.slot()) << "the id differs in its space alone";
  for (SequenceId id : {foreign, stale, SequenceId{}, SequenceId{~std::uint64_t{0}},
                        SequenceId{sequence_.value + 1}, SequenceId{sequence_.value ^ 1 << 24}}) {
    SCOPED_TRACE(describe(id));
    const auto refuse = [&](const auto& call) { expect_refused<UnknownSequence>(cache_, call); };
    refuse([&] { cache_.truncate(id, 0); });
    refuse([&] { cache_.erase(id); });
    refuse([&] { (void)cache_.fork(id); });
    refuse([&] { cache_.reserve(id, 1); });
    refuse([&] { (void)cache_.try_reserve(id, 1); });
    refuse([&] { (void)cache_.plan({{id, 1}}); });
    refuse([&] { (void)cache_.allocator().length(id); });
    EXPECT_FALSE(cache_.allocator().contains(id));
  }
  try {
    cache_.truncate(foreign, 1);
  } catch (const UnknownSequence& error) {
    EXPECT_NE(std::string(error.what()).find("another cache"), std::string::npos) << error.what();
  }
}

TEST_F(HostileArguments, LengthsOfSequences) {
  for (std::int64_t tokens : {kLeast, std::int64_t{-1}}) {
    expect_refused<InvalidArgument>(cache_, [&] { cache_.truncate(sequence_, tokens); });
    expect_refused<InvalidArgument>(cache_, [&] { cache_.reserve(sequence_, tokens); });
  }
  expect_refused<InvalidArgument>(cache_, [&] { cache_.truncate(sequence_, kMost); });
  expect_refused<OutOfPages>(cache_, [&] { cache_.reserve(sequence_, kMost); });
}

TEST_F(HostileArguments, KeptTokens) {
  fill(cache_, sequence_, 6);
  const auto refuse = [&](std::int64_t begin, std::vector<std::int64_t> kept) {
    const std::vector<KeptTokens> batch{{sequence_, begin, std::move(kept)}};
    expect_refused<InvalidArgument>(cache_, [&] { cache_.compact(batch); });
  };
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{7}, kMost}) refuse(bad, {});
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{2}, std::int64_t{6}, kMost}) {
    refuse(3, {bad});
    refuse(3, {3, bad});
  }
  refuse(3, {4, 4});
  refuse(3, {5, 4});
  const std::vector<KeptTokens> twice{{sequence_, 5, {}}, {sequence_, 3, {}}};
  expect_refused<InvalidArgument>(cache_, [&] { cache_.compact(twice); });
  const std::vector<KeptTokens> nobody{{SequenceId{}, 0, {}}};
  expect_refused<UnknownSequence>(cache_, [&] { cache_.compact(nobody); });
}

TEST_F(HostileArguments, RanksAndLayersOfPools) {
  for (int bad : {kLeastInt, -1, 2, kMostInt}) {
    EXPECT_THROW(cache_.pool(bad), InvalidArgument) << bad;
    EXPECT_THROW(cache_.planes(bad), InvalidArgument) << bad;
    EXPECT_THROW((void)cache_.peer_pool(Rank{bad}, 0), InvalidArgument) << bad;
    EXPECT_THROW((void)cache_.peer_pool(Rank{0}, bad), InvalidArgument) << bad;
  }
}

TEST_F(HostileArguments, OptionsOfCaches) {
  const auto refuse = [&](const auto& spoil) {
    CacheOptions options = small_cache_options();
    spoil(options);
    EXPECT_THROW(KvCache(mesh_, options), Error);
  };
  for (int CacheOptions::*field :
       {&CacheOptions::layers, &CacheOptions::q_heads, &CacheOptions::kv_heads,
        &CacheOptions::k_dim, &CacheOptions::v_dim, &CacheOptions::page_size}) {
    for (int bad : {kLeastInt, -1, kMostInt}) refuse([&](CacheOptions& o) { o.*field = bad; });
  }
  refuse([](CacheOptions& o) { o.dtype = static_cast<Dtype>(77); });
  refuse([](CacheOptions& o) { o.placement = static_cast<Placement>(77); });
  refuse([](CacheOptions& o) { o.page_kind = static_cast<PageKind>(77); });
  refuse([](CacheOptions& o) { o.scales.kind = static_cast<ScaleKind>(77); });
  for (std::size_t count : {0u, 1u, 3u}) {
    refuse([&](CacheOptions& o) {
      o.dtype = Dtype::kFloat8E4M3;
      o.scales = {.kind = ScaleKind::kPerHead};
      o.scales.k_heads.assign(count, 1.0f);
      o.scales.v_heads.assign(2, 1.0f);
    });
  }
  for (std::int64_t bad : {kLeast, kMeasuredHomeThreshold - 1, std::int64_t{-1}}) {
    refuse([&](CacheOptions& o) { o.home_threshold_tokens = bad; });
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{0}, kMost}) {
    refuse([&](CacheOptions& o) { o.pages_per_rank = bad; });
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{1}, std::int64_t{671}}) {
    refuse([&](CacheOptions& o) {
      o.pages_per_rank = 0;
      o.bytes = bad;
    });
  }
  for (double bad : {-1.0, 1e-300, 1.5, double{kNan}, double{kInfinity}}) {
    refuse([&](CacheOptions& o) {
      o.pages_per_rank = 0;
      o.memory_fraction = bad;
    });
  }
}

// Products of these are past 2^63 and 2^64, or wrap around to a small number.
TEST_F(HostileArguments, SizesThatOverflow) {
  for (const auto& [page_size, pages] : std::vector<std::pair<int, std::int64_t>>{
           {998601496, 4008806}, {kMostInt, 4194304}, {1 << 30, 1 << 22}, {1 << 29, 1 << 22}}) {
    CacheOptions options = small_cache_options();
    options.layers = 1 << 10;
    options.page_size = page_size;
    options.pages_per_rank = pages;
    EXPECT_THROW(KvCache(mesh_, options), InvalidArgument) << page_size << " " << pages;
    options.pages_per_rank = 0;
    options.bytes = 1 << 20;
    EXPECT_THROW(KvCache(mesh_, options), InvalidArgument) << "a page larger than the bytes";
    options.layers = kMostInt;
    EXPECT_THROW(KvCache(mesh_, options), InvalidArgument) << "a page past 2^63";
    options.bytes = 0;
    options.memory_fraction = 0.5;
    EXPECT_THROW(KvCache(mesh_, options), Error);
  }
  CacheOptions vast = small_cache_options();
  vast.pages_per_rank = 4194304;
  vast.layers = 1 << 20;
  EXPECT_THROW(KvCache(mesh_, vast), OutOfMemory) << "can be counted, but no machine has it";
}

TEST_F(HostileArguments, OptionsOfMeshes) {
  const auto mesh = [](const MeshOptions& options) { Mesh(make_single_communicator(), options); };
  for (int bad : {kLeastInt, -1, 0, 2, kMostInt}) {
    EXPECT_THROW(mesh({.head_parallel = bad, .threads = 1}), InvalidArgument) << bad;
  }
  for (int bad : {kLeastInt, -1, 1'000'000, kMostInt}) {
    EXPECT_THROW(mesh({.threads = bad}), InvalidArgument) << bad;
  }
  EXPECT_THROW(mesh({.device = static_cast<DeviceChoice>(9)}), InvalidArgument);
  for (milliseconds bad : {milliseconds::min(), milliseconds(-1)}) {
    EXPECT_THROW(mesh({.threads = 1, .deadline = bad}), InvalidArgument);
    EXPECT_THROW(make_single_communicator()->set_deadline(bad), InvalidArgument);
  }
  EXPECT_THROW(Mesh(std::unique_ptr<Communicator>{}), InvalidArgument);
}

TEST_F(HostileArguments, AcceptsTheLongestDeadline) {
  run_on_threads(2, [](Mesh& mesh) { barrier(mesh.world()); },
                 {.threads = 1, .deadline = milliseconds::max()});
}

TEST_F(HostileArguments, Memory) {
  EXPECT_THROW(DeviceMemory({}, std::numeric_limits<std::size_t>::max()), Error);
  EXPECT_THROW(DeviceMemory({static_cast<DeviceKind>(9), 0}, 8), InvalidArgument);
  EXPECT_THROW(use_device({static_cast<DeviceKind>(9), 0}), InvalidArgument);
  char byte = 1;
  EXPECT_THROW(copy_bytes(nullptr, &byte, 1), InvalidArgument);
  EXPECT_THROW(copy_bytes(&byte, nullptr, 1), InvalidArgument);
}

// ---- PagedAttention: two rows, pages of 4 ----

class HostilePagedAttention : public testing::Test {
 protected:
  HostilePagedAttention() {
    for (int row : {0, 1}) paged_.reserve(row, 8);
  }

  PagedAttention paged_{6, 4, 2};
  Tensors t_;
  std::vector<float> pages_ = std::vector<float>(2 * 2 * 24 * 8);
  TensorView k_cache_ = tensor(pages_.data(), {1, 2, 24, 8});
  TensorView v_cache_ = tensor(pages_.data() + 384, {1, 2, 24, 8});
  TensorView rows_ = t_.at(0, {2, 2, 3, 8}), out_ = t_.at(100, {2, 2, 3, 8});
  TensorView lse_ = t_.at(200, {2, 2, 3});
  const std::vector<int> batch_{0, 1};
  const std::vector<std::int64_t> positions_{0, 1, 2, 0, 1, 2}, lengths_{3, 3};
};

// The extents of a cache along its first dimension are 1: strides there do not matter.
std::vector<Spoil<TensorView>> cache_spoils(std::vector<Spoil<TensorView>> all) {
  std::erase_if(all, [](const auto& spoil) {
    return spoil.name.starts_with("stride 0") || spoil.name == "rows in one place";
  });
  return all;
}

TEST_F(HostilePagedAttention, Assign) {
  const auto call = [&](const TensorView& k, const TensorView& v, const TensorView& k_cache,
                        const TensorView& v_cache) {
    paged_.assign(batch_, positions_, k, v, k_cache, v_cache);
  };
  call(rows_, rows_, k_cache_, v_cache_);
  const auto in = spoils<TensorView>();
  const auto cache = cache_spoils(output_spoils());
  expect_refuses("k_val", rows_, in, [&](auto& k) { call(k, rows_, k_cache_, v_cache_); });
  expect_refuses("v_val", rows_, in, [&](auto& v) { call(rows_, v, k_cache_, v_cache_); });
  expect_refuses("k_cache", k_cache_, cache, [&](auto& c) { call(rows_, rows_, c, v_cache_); });
  expect_refuses("v_cache", v_cache_, cache, [&](auto& c) { call(rows_, rows_, k_cache_, c); });
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{8}, kMost}) {
    std::vector<std::int64_t> positions = positions_;
    positions.back() = bad;
    EXPECT_THROW(paged_.assign(batch_, positions, rows_, rows_, k_cache_, v_cache_),
                 InvalidArgument);
  }
}

TEST_F(HostilePagedAttention, Forward) {
  const auto call = [&](const TensorView& q, const TensorView& k, const TensorView& v,
                        const TensorView& out, const TensorView& lse) {
    paged_.forward(q, k, v, lengths_, out, {.lse = lse});
  };
  call(rows_, k_cache_, v_cache_, out_, lse_);
  const auto in = spoils<TensorView>();
  const auto out = output_spoils();
  const auto cache = cache_spoils(in);
  std::vector<Spoil<TensorView>> lse_out = out;
  lse_out.erase(lse_out.begin());  // no memory: no LSE
  expect_refuses("query", rows_, in, [&](auto& q) { call(q, k_cache_, v_cache_, out_, lse_); });
  expect_refuses("k_cache", k_cache_, cache,
                 [&](auto& c) { call(rows_, c, v_cache_, out_, lse_); });
  expect_refuses("v_cache", v_cache_, cache,
                 [&](auto& c) { call(rows_, k_cache_, c, out_, lse_); });
  expect_refuses("out", out_, out, [&](auto& o) { call(rows_, k_cache_, v_cache_, o, lse_); });
  expect_refuses("lse", lse_, lse_out,
                 [&](auto& lse) { call(rows_, k_cache_, v_cache_, out_, lse); });
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{9}, kMost}) {
    EXPECT_THROW(paged_.forward(rows_, k_cache_, v_cache_, std::vector<std::int64_t>{3, bad}, out_),
                 InvalidArgument);
  }
  EXPECT_THROW(paged_.forward(rows_, k_cache_, v_cache_, lengths_, out_, {.scale = kNan}),
               InvalidArgument);
}

TEST_F(HostilePagedAttention, RowsAndSizes) {
  for (int bad : {kLeastInt, -1, 2, kMostInt}) {
    EXPECT_THROW(paged_.reserve(bad, 1), InvalidArgument) << bad;
    EXPECT_THROW(paged_.erase(bad), InvalidArgument) << bad;
    EXPECT_THROW((void)paged_.capacity(bad), InvalidArgument) << bad;
    EXPECT_THROW((void)paged_.pages(bad), InvalidArgument) << bad;
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{1} << 31, kMost}) {
    EXPECT_THROW((void)paged_.get_mask_mod({}, std::vector<std::int64_t>{1, bad}), InvalidArgument);
  }
  for (std::int64_t pages : {kLeast, std::int64_t{-1}, std::int64_t{0}, kMost}) {
    EXPECT_THROW(PagedAttention(pages, 4, 2), InvalidArgument) << pages;
  }
  for (int bad : {kLeastInt, -1, 0}) {
    EXPECT_THROW(PagedAttention(6, bad, 2), InvalidArgument) << bad;
    EXPECT_THROW(PagedAttention(6, 4, bad), InvalidArgument) << bad;
  }
  EXPECT_THROW(PagedAttention(6, 4, kMostInt), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
