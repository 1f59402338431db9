// Public calls without a cache: the allocator, the combine, block masks, mods, ranks; and
// moved-from objects.
#include <chrono>
#include <cmath>

#include "kvmesh/kvmesh.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/hostile.hpp"

namespace kvmesh::test {
namespace {

using std::chrono::milliseconds;

// ---- PageAllocator ----

constexpr AllocatorOptions kSmall{.ranks = 2, .pages_per_rank = 4, .page_size = 4};

class HostileAllocator : public testing::Test {
 protected:
  template <class E, class Call>
  void refuse(const Call& call) {
    const std::uint64_t before = allocator_.digest();
    EXPECT_THROW(call(), E);
    EXPECT_EQ(allocator_.digest(), before);
    EXPECT_NO_THROW(allocator_.verify_integrity());
  }

  PageAllocator allocator_{kSmall};
  SequenceId sequence_ = allocator_.create();
};

TEST_F(HostileAllocator, Options) {
  const auto refuse_options = [](const auto& spoil) {
    AllocatorOptions options = kSmall;
    spoil(options);
    EXPECT_THROW(PageAllocator{options}, InvalidArgument);
  };
  for (int bad : {kLeastInt, -1, 0}) {
    refuse_options([&](auto& o) { o.ranks = bad; });
    refuse_options([&](auto& o) { o.page_size = bad; });
  }
  refuse_options([](auto& o) { o.ranks = kMostInt; });
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{0}, kMost}) {
    refuse_options([&](auto& o) { o.pages_per_rank = bad; });
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}}) {
    refuse_options([&](auto& o) { o.home_threshold_tokens = bad; });
  }
  refuse_options([](auto& o) { o.placement = static_cast<Placement>(77); });
}

TEST_F(HostileAllocator, LengthsAndRanges) {
  allocator_.append(sequence_, 6);
  for (std::int64_t bad : {kLeast, std::int64_t{-1}}) {
    refuse<InvalidArgument>([&] { allocator_.append(sequence_, bad); });
    refuse<InvalidArgument>([&] { allocator_.reserve(sequence_, bad); });
    refuse<InvalidArgument>([&] { allocator_.truncate(sequence_, bad); });
    refuse<InvalidArgument>([&] { allocator_.make_writable(sequence_, bad, 2); });
    refuse<InvalidArgument>([&] { allocator_.make_writable(sequence_, 0, bad); });
  }
  refuse<InvalidArgument>([&] { allocator_.truncate(sequence_, 7); });
  refuse<InvalidArgument>([&] { allocator_.make_writable(sequence_, 3, 2); });
  refuse<InvalidArgument>([&] { allocator_.make_writable(sequence_, 0, kMost); });
  for (std::int64_t many : {std::int64_t{33}, std::int64_t{1} << 62, kMost}) {
    refuse<Error>([&] { allocator_.append(sequence_, many); });
    refuse<Error>([&] { allocator_.reserve(sequence_, many); });
  }
  const AppendRequest twice[] = {{sequence_, 1}, {sequence_, 1}};
  refuse<InvalidArgument>([&] { allocator_.append(twice); });
}

TEST_F(HostileAllocator, IdsPagesAndRanks) {
  const SequenceId stale = allocator_.create();
  allocator_.erase(stale);
  for (SequenceId id : {stale, SequenceId{}, SequenceId{~std::uint64_t{0}}}) {
    SCOPED_TRACE(describe(id));
    refuse<UnknownSequence>([&] { allocator_.append(id, 1); });
    refuse<UnknownSequence>([&] { allocator_.make_writable(id, 0, 0); });
    refuse<UnknownSequence>([&] { (void)allocator_.capacity(id); });
    refuse<UnknownSequence>([&] { (void)allocator_.pages(id); });
    refuse<UnknownSequence>([&] { (void)allocator_.version(id); });
  }
  for (int bad : {kLeastInt, -1, 2, kMostInt}) {
    refuse<InvalidArgument>([&] { (void)allocator_.free_pages(PageRank{bad}); });
  }
  for (PageId bad : {PageId(), PageId(PageRank{0}, 4), PageId(PageRank{2}, 0)}) {
    refuse<InvalidArgument>([&] { (void)allocator_.reference_count(bad); });
    refuse<InvalidArgument>([&] { (void)allocator_.generation(bad); });
    EXPECT_FALSE(allocator_.is_current(bad, 0));
  }
}

// ---- Combiner and its parts ----

TEST(HostileCombine, TensorsAndOptions) {
  const auto comm = make_single_communicator();
  Combiner combiner(*comm);
  std::vector<float> memory(1024, 0.5f);
  const auto at = [&](std::int64_t offset, std::initializer_list<std::int64_t> shape) {
    return tensor(memory.data() + offset, shape);
  };
  const TensorView mine_o = at(0, {2, 4, 6}), mine_lse = at(100, {2, 4});
  const TensorView o = at(200, {2, 4, 6}), lse = at(300, {2, 4});
  const auto out = output_spoils();
  std::vector<Spoil<TensorView>> lse_out = out;
  lse_out.erase(lse_out.begin());  // no memory: no merged LSE
  const auto in = spoils<TensorView>();

  const auto call = [&](const Partial& mine, const CombineOutput& output) {
    combiner(mine, {}, output);
  };
  call({mine_o, mine_lse}, {o, lse});
  expect_refuses("mine.o", mine_o, in, [&](auto& t) { call({t, mine_lse}, {o, lse}); });
  expect_refuses("mine.lse", mine_lse, in, [&](auto& t) { call({mine_o, t}, {o, lse}); });
  expect_refuses("o", o, out, [&](auto& t) { call({mine_o, mine_lse}, {t, lse}); });
  expect_refuses("lse", lse, lse_out, [&](auto& t) { call({mine_o, mine_lse}, {o, t}); });

  const Partial mine{mine_o, mine_lse};
  EXPECT_THROW(combiner(mine, {.scatter = static_cast<Scatter>(99)}, {o, lse}), InvalidArgument);
  EXPECT_THROW(combiner(mine, {.strategy = static_cast<CombineStrategy>(99)}, {o, lse}),
               InvalidArgument);
  for (const Participation& bad : {Participation(3, 1), Participation(2, 2)}) {
    EXPECT_THROW(combiner(mine, {.participation = &bad}, {o, lse}), InvalidArgument);
  }
}

TEST(HostileCombine, SharesAndMasks) {
  for (int bad : {kLeastInt, -1, 2, kMostInt}) {
    EXPECT_THROW(share_of(4, bad, 2), InvalidArgument) << bad;
  }
  for (int bad : {kLeastInt, -1, 0}) {
    EXPECT_THROW(share_of(4, 0, bad), InvalidArgument) << bad;
    EXPECT_THROW(Participation(4, bad), InvalidArgument) << bad;
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}}) {
    EXPECT_THROW(share_of(bad, 0, 2), InvalidArgument) << bad;
    EXPECT_THROW(Participation(bad, 2), InvalidArgument) << bad;
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{4}, kMost}) {
    EXPECT_THROW(Participation(4, 2).add(bad, Rank{0}), InvalidArgument) << bad;
  }
  for (int bad : {kLeastInt, -1, 2, kMostInt}) {
    EXPECT_THROW(Participation(4, 2).add(0, Rank{bad}), InvalidArgument) << bad;
  }
  EXPECT_THROW(Participation(kMost, kMostInt), InvalidArgument) << "past any memory";
}

// ---- Block masks and mods ----

TEST(HostileMasks, Shapes) {
  const BlockMaskShape good{.q_len = 8, .kv_len = 8, .q_block = 4, .kv_block = 4};
  const auto refuse_shape = [&](const auto& spoil) {
    BlockMaskShape shape = good;
    spoil(shape);
    EXPECT_THROW((void)BlockMask::create(mods::causal(), shape), InvalidArgument);
    EXPECT_THROW((void)BlockMask::from_lists(shape, {}), InvalidArgument);
  };
  for (std::int64_t BlockMaskShape::*field : {&BlockMaskShape::batch, &BlockMaskShape::heads,
                                              &BlockMaskShape::q_len, &BlockMaskShape::kv_len}) {
    for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{0}, kMost}) {
      refuse_shape([&](auto& shape) { shape.*field = bad; });
    }
  }
  for (int BlockMaskShape::*field : {&BlockMaskShape::q_block, &BlockMaskShape::kv_block}) {
    for (int bad : {kLeastInt, -1, 0}) refuse_shape([&](auto& shape) { shape.*field = bad; });
  }
  refuse_shape([](auto& shape) { shape.q_start = {1, 2}; });
  refuse_shape([](auto& shape) { shape.q_start = {-1}; });
  refuse_shape([](auto& shape) { shape.q_start = {kMostInt}; });
  refuse_shape([](auto& shape) {
    shape.batch = shape.heads = std::int64_t{1} << 31;  // rows past 2^63
  });
}

TEST(HostileMasks, ListsAndRows) {
  const BlockMaskShape shape{.q_len = 4, .kv_len = 8, .q_block = 4, .kv_block = 4};
  for (std::int32_t bad : {kLeastInt, -1, 2, kMostInt}) {
    const BlockRow partial{.partial = {bad}, .full = {}}, full{.partial = {}, .full = {bad}};
    EXPECT_THROW((void)BlockMask::from_lists(shape, {&partial, 1}), InvalidArgument) << bad;
    EXPECT_THROW((void)BlockMask::from_lists(shape, {&full, 1}), InvalidArgument) << bad;
  }
  const BlockRow twice{.partial = {1}, .full = {1}};
  EXPECT_THROW((void)BlockMask::from_lists(shape, {&twice, 1}), InvalidArgument);
  const BlockMask mask = BlockMask::create(
      {}, {.batch = 2, .heads = 2, .q_len = 8, .kv_len = 8, .q_block = 4, .kv_block = 4});
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{2}, kMost}) {
    EXPECT_THROW((void)mask.row(bad, 0, 0), InvalidArgument) << bad;
    EXPECT_THROW((void)mask.row(0, bad, 0), InvalidArgument) << bad;
    EXPECT_THROW((void)mask.row(0, 0, bad), InvalidArgument) << bad;
  }
  const std::vector<PageId> table(2);
  const std::span<const PageId> tables[] = {table, table};
  EXPECT_THROW((void)convert_to_local(mask, tables, 4, PageRank{0}), InvalidArgument) << "no pages";
  for (int bad : {kLeastInt, -1, 0, 5}) {
    EXPECT_THROW((void)convert_to_local(mask, tables, bad, PageRank{0}), InvalidArgument) << bad;
  }
}

TEST(HostileMasks, Mods) {
  for (float bad : {kNan, kInfinity, -kInfinity, 0.0f, -1.0f}) {
    EXPECT_THROW((void)mods::soft_cap(bad), InvalidArgument) << bad;
  }
  for (int bad : {kLeastInt, -1, 0}) {
    EXPECT_THROW((void)mods::sliding_window(bad), InvalidArgument) << bad;
    EXPECT_THROW((void)mods::alibi(bad), InvalidArgument) << bad;
  }
  EXPECT_THROW((void)mods::prefix_lm(-1), InvalidArgument);
  const Buffer<float> table({1.0f, 2.0f});
  for (int bad : {kLeastInt, -1, 1, kMostInt}) {
    EXPECT_THROW((void)mods::relative_bias(table, bad), InvalidArgument) << bad;
  }
  EXPECT_THROW(Buffer<float>(std::vector<float>{}), InvalidArgument);
}

// ---- Ranks and threads ----

TEST(HostileRanks, CountsAndDeadlines) {
  const auto nothing = [](Communicator&) {};
  for (int bad : {kLeastInt, -1, 0, kMostInt}) {
    EXPECT_THROW(run_loopback(bad, nothing), InvalidArgument) << bad;
    EXPECT_THROW(ThreadPool{bad}, InvalidArgument) << bad;
  }
  for (milliseconds bad : {milliseconds::min(), milliseconds(-1)}) {
    EXPECT_THROW(run_loopback(2, nothing, bad), InvalidArgument);
  }
  run_loopback(
      2, [](Communicator& comm) { barrier(comm); }, milliseconds::max());
  EXPECT_THROW((void)device_choice_from(""), InvalidArgument);
  EXPECT_THROW((void)make_mpi_communicator(nullptr), InvalidArgument);
}

TEST(HostileRanks, EntriesOfExchanges) {
  const auto comm = make_single_communicator();
  std::byte byte{};
  for (int bad : {kLeastInt, -1, 1, kMostInt}) {
    const Outgoing out{Rank{bad}, {&byte, 1}};
    const Incoming in{Rank{bad}, {&byte, 1}};
    EXPECT_THROW(comm->exchange({&out, 1}, {}, "test"), InvalidArgument) << bad;
    EXPECT_THROW(comm->exchange({}, {&in, 1}, "test"), InvalidArgument) << bad;
    EXPECT_THROW(broadcast(*comm, Rank{bad}, {&byte, 1}), InvalidArgument) << bad;
  }
  for (int bad : {kLeastInt, -1}) EXPECT_THROW((void)comm->split(bad, 0), InvalidArgument) << bad;
  barrier(*comm);
}

// ---- Moved-from objects ----

TEST(HostileMoves, MovedFromCacheRejectsEveryCall) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache moved(mesh, small_cache_options());
  const SequenceId id = moved.create();
  StepPlan step = moved.plan({{id, 1}});
  const PrefixKey key = moved.make_prefix_key();
  KvCache cache = std::move(moved);
  const auto refuse = [](const auto& call) { EXPECT_THROW(call(), InvalidArgument); };
  refuse([&] { (void)moved.options(); });
  refuse([&] { (void)moved.mesh(); });
  refuse([&] { (void)moved.allocator(); });
  refuse([&] { (void)moved.create(); });
  refuse([&] { moved.reserve(id, 1); });
  refuse([&] { (void)moved.try_reserve(id, 1); });
  refuse([&] { (void)moved.fork(id); });
  refuse([&] { moved.truncate(id, 0); });
  refuse([&] { moved.erase(id); });
  refuse([&] { moved.make_writable(id, 0, 1); });
  refuse([&] { (void)moved.try_make_writable(id, 0, 1); });
  refuse([&] { moved.write(0, id, {}, {}, {}); });
  refuse([&] { (void)moved.make_prefix_key(); });
  refuse([&] { (void)moved.match_prefix(key); });
  refuse([&] { (void)moved.create_with_prefix(key); });
  refuse([&] { moved.publish(id, key); });
  refuse([&] { (void)moved.make_block_mask({}, {.q_len = 1, .kv_len = 1}); });
  refuse([&] { (void)moved.plan({{id, 1}}); });
  refuse([&] { moved.replan(step, std::vector<BatchEntry>{{id, 1}}); });
  refuse([&] { moved.check_replicas(); });
  refuse([&] { (void)moved.pool_bytes(); });
  refuse([&] { (void)moved.page_format(); });
  refuse([&] { (void)moved.planes(0); });
  refuse([&] { (void)moved.pool(0); });
  refuse([&] { (void)moved.peer_pool(Rank{0}, 0); });
  EXPECT_NO_THROW(cache.replan(step, std::vector<BatchEntry>{{id, 1}}));
  moved = std::move(cache);
  EXPECT_NO_THROW(moved.erase(id));
}

TEST(HostileMoves, MovedFromPlansAndCombiners) {
  const AttentionShape shape{.q_heads = 1, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .page_size = 4};
  AttentionPlan plan(
      shape, {.q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}},
      {});
  const AttentionPlan kept = std::move(plan);
  EXPECT_THROW((void)plan.tokens(), InvalidArgument);
  EXPECT_THROW((void)plan.tiles(), InvalidArgument);
  EXPECT_THROW((void)plan.workspace_bytes(), InvalidArgument);
  ThreadPool threads(1);
  EXPECT_THROW(plan.attend_partial({}, {}, {}, threads), InvalidArgument);

  const auto comm = make_single_communicator();
  Combiner combiner(*comm);
  const Combiner other = std::move(combiner);
  EXPECT_THROW(combiner({}, {}, {}), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
