// An import, or a copy of pages, gives up waiting for a move; the pages are given back, and the
// move writes to them later. The next use of these pages comes after the move.
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/runtime/streams/late_backend.hpp"
#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kImported = 256;  // tokens: one record of each layer; as many are copied

/// Writes the same number everywhere in the plan's tokens of every layer with keys.
void append_all(Mesh& mesh, KvCache& cache, StepPlan& plan, float value) {
  const std::int64_t tokens = plan.append_tokens(), heads = kHeads / mesh.head_parallel();
  std::vector<float> k(static_cast<std::size_t>(tokens * heads * kDim), value);
  std::vector<float> v(static_cast<std::size_t>(tokens * heads * 6), value);
  for (int layer = 0; layer < cache.options().layers; ++layer)
    if (cache.group_options(cache.group_of(layer)).state_bytes == 0)
      plan.append(layer, tensor(k.data(), {tokens, heads, kDim}),
                  tensor(v.data(), {tokens, heads, 6}));
}

SequenceId filled(Mesh& mesh, KvCache& cache, std::int64_t tokens, float value) {
  const SequenceId sequence = cache.create();
  StepPlan plan = cache.plan({{sequence, tokens, 0}});
  append_all(mesh, cache, plan, value);
  return sequence;
}

/// Returns how many numbers of this rank's pages in layer 0 are not `value`.
std::int64_t others(Mesh& mesh, KvCache& cache, SequenceId sequence, float value) {
  const auto k = inside(cache).pools.layer(0)[0];
  std::int64_t count = 0;
  for (std::int64_t token = 0; token < cache.length(sequence); ++token) {
    const int page_size = cache.options().page_size;
    const PageId page =
        cache.allocator().pages(sequence)[static_cast<std::size_t>(token / page_size)];
    if (page.rank() != mesh.page_rank()) continue;
    for (std::int64_t head = 0; head < k.shape[1]; ++head)
      for (std::int64_t d = 0; d < k.shape[3]; ++d)
        count += static_cast<const float*>(
                     k.data)[page.index() * k.stride(0) + head * k.stride(1) +
                             token % page_size * k.stride(2) + d * k.stride(3)] != value;
  }
  return count;
}

/// The moves that wait are made.
void end_moves(LateStream& late) {
  late.stick(false);
  while (!late.is_done()) {
  }
}

/// Lets the cache import a sequence for whose first move rank `late_rank` stops to wait.
void fail_import(Mesh& mesh, KvCache& cache, LateBackend& late, const Stream& stream,
                 int late_rank) {
  const bool is_late = mesh.rank().value == late_rank;
  const std::int64_t free = cache.allocator().free_pages();
  if (is_late) mesh.world().set_deadline(std::chrono::milliseconds(50));
  late.stream().stick(is_late);
  MemorySource source(stream);
  EXPECT_THROW(cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr), StreamError);
  EXPECT_EQ(late.stream().is_waiting(), is_late);
  EXPECT_EQ(cache.allocator().free_pages(), free);
}

constexpr float kBase = 1, kImport = 7, kNew = 3;

/// Starts copies of the first pages of a fork of `sequence`, for which the cache stops to wait, and
/// gives the new pages back.
void fail_copies(Mesh& mesh, KvCache& cache, LateBackend& late, SequenceId sequence) {
  mesh.kv_comm().set_deadline(std::chrono::milliseconds(50));
  late.stick_copies();
  const SequenceId copied = cache.fork(sequence);
  EXPECT_THROW(cache.make_writable(copied, 0, kImported), Timeout);
  EXPECT_TRUE(late.is_copying());
  cache.erase(copied);
}

enum class LateKind { kImport, kCopies };

/// One rank whose cache has only the pages free that a failed import, or copies of a fork, have
/// given back.
class LateMove {
 public:
  explicit LateMove(LateKind kind, const CacheOptions& options = options_of({}),
                    std::int64_t prefix_tokens = 0)
      : cache_(std::in_place, mesh_, options) {
    const SequenceId sevens = filled(mesh_, *cache_, kImported, kImport);
    const Stream stream = export_of(mesh_, *cache_, sevens);
    cache_->erase(sevens);
    publish(prefix_tokens);
    base =
        filled(mesh_, *cache_, options.pages_per_rank * options.page_size - kImported - 1, kBase);
    plan.emplace(cache_->plan({{base, 0, 1}}));
    fork = cache_->fork(base);
    LateBackend& late = stage(*cache_, 1);
    polls = late.polls();
    export_of(mesh_, *cache_, base);  // makes the stream
    if (kind == LateKind::kImport) {
      fail_import(mesh_, *cache_, late, stream, 0);
      mesh_.kv_comm().set_deadline(mesh_.world().deadline());  // of the cache's last wait
    } else {
      fail_copies(mesh_, *cache_, late, base);
    }
    late_ = kind == LateKind::kImport ? &late.stream() : &late.copies();
  }

  KvCache& cache() { return *cache_; }
  /// That of the late moves.
  LateStream& late() { return *late_; }
  void append(float value) { append_all(mesh_, *cache_, *plan, value); }
  /// Expects that the late move leaves the sequence's tokens as they are.
  void expect(SequenceId sequence, float value) {
    end_moves(*late_);
    EXPECT_EQ(others(mesh_, *cache_, sequence, value), 0);
  }
  void end() {
    plan.reset();
    cache_.reset();
  }

  SequenceId base, fork;  // whose last page they share and have not filled
  std::optional<StepPlan> plan;
  std::optional<PrefixKey> key;
  std::shared_ptr<const int> polls;  // of all streams

 private:
  /// Publishes a prefix of new tokens.
  void publish(std::int64_t tokens) {
    if (tokens == 0) return;
    key = cache_->make_prefix_key();
    key->append(std::vector<std::int32_t>(static_cast<std::size_t>(tokens), 5));
    const SequenceId prefix = filled(mesh_, *cache_, tokens, kNew);
    cache_->publish(prefix, *key);
    cache_->erase(prefix);
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu}};
  std::optional<KvCache> cache_;
  LateStream* late_ = nullptr;
};

class LateMoves : public testing::TestWithParam<LateKind> {};
INSTANTIATE_TEST_SUITE_P(Of, LateMoves, testing::Values(LateKind::kImport, LateKind::kCopies),
                         [](const auto& kind) {
                           return kind.param == LateKind::kImport ? "Imports" : "Copies";
                         });

TEST_P(LateMoves, AreMadeBeforeAPlansTokensAreWritten) {
  LateMove it(GetParam());
  const SequenceId sequence = it.cache().create();
  it.plan.emplace(it.cache().plan({{sequence, kImported, 0}}));
  it.append(kNew);
  it.expect(sequence, kNew);
}

TEST_P(LateMoves, AreMadeBeforeAReplansTokensAreWritten) {
  LateMove it(GetParam());
  const SequenceId sequence = it.cache().create();
  it.cache().replan(*it.plan, std::vector<BatchEntry>{{sequence, kImported, 0}}, {});
  it.append(kNew);
  it.expect(sequence, kNew);
}

TEST_P(LateMoves, AreMadeBeforeACopyOnWrite) {
  LateMove it(GetParam());
  it.cache().replan(*it.plan, std::vector<BatchEntry>{{it.fork, 1, 0}}, {});
  it.append(kBase);
  it.expect(it.fork, kBase);
}

TEST_P(LateMoves, AreMadeBeforeMakeWritableCopiesInAStream) {
  LateMove it(GetParam());
  it.cache().make_writable(it.fork, 0, 1, kvmesh::Stream{});
  EXPECT_FALSE(it.late().is_waiting());
}

TEST_P(LateMoves, AreMadeBeforeTokensAreCompacted) {
  LateMove it(GetParam());
  it.cache().erase(it.fork);
  it.cache().compact(std::vector<KeptTokens>{{it.base, 0, {1}}});
  EXPECT_FALSE(it.late().is_waiting());
}

TEST_P(LateMoves, AreMadeBeforePagesComeBackFromATier) {
  CacheOptions options = options_of({});
  options.tiers.host_bytes = std::int64_t{1} << 20;
  constexpr std::int64_t kPrefix = 64;
  LateMove it(GetParam(), options, kPrefix);
  const PrefixMatch match = it.cache().match_prefix(*it.key, kvmesh::Stream{});
  EXPECT_EQ(match.tokens, kPrefix);
  EXPECT_EQ(it.cache().tier_statistics().pages_back, kPrefix / options.page_size);
  const SequenceId sequence = it.cache().create_with_prefix(match);
  it.cache().planes(0);  // the copies are made
  it.expect(sequence, kNew);
}

// These wait on the host, at most until the deadline.
TEST_P(LateMoves, EndBeforeTheHostUsesPages) {
  LateMove it(GetParam());
  KvCache& cache = it.cache();
  const SequenceId sequence = cache.create();
  cache.reserve(sequence, kImported);
  std::vector<float> k(kHeads * kDim, kNew), v(kHeads * 6, kNew);
  const auto write = [&] {
    for (std::int64_t token = 0; token < kImported; ++token)
      cache.write(0, sequence, std::vector<std::int64_t>{token},
                  tensor(k.data(), {1, kHeads, kDim}), tensor(v.data(), {1, kHeads, 6}));
  };
  EXPECT_THROW(write(), Timeout);
  EXPECT_THROW(cache.pool(0), Timeout);
  EXPECT_THROW(cache.planes(0), Timeout);
  EXPECT_TRUE(it.late().is_waiting());
  it.late().stick(false);
  write();
  it.plan.emplace(cache.plan({{sequence, kImported, 0}}));
  it.expect(sequence, kNew);
}

TEST_P(LateMoves, EndBeforeTheHostCopiesOnWrite) {
  LateMove it(GetParam());
  EXPECT_THROW(it.cache().make_writable(it.fork, 0, 1), Timeout);
}

TEST_P(LateMoves, EndBeforeAStateIsWritten) {
  CacheOptions options = options_of({});
  options.layers = 4;
  options.groups = {{.layers = {3}, .state_bytes = 32}};
  options.prefix.enabled = false;
  LateMove it(GetParam(), options);
  EXPECT_THROW(it.cache().sequence_state(3, it.base), Timeout);
  it.late().stick(false);
  EXPECT_FALSE(it.cache().sequence_state(3, it.base).empty());
  EXPECT_FALSE(it.late().is_waiting());
}

TEST_P(LateMoves, EndBeforeTheCache) {
  LateMove it(GetParam());
  const std::shared_ptr<const int> polls = it.polls;
  it.late().stick(false);
  const int before = *polls;
  it.end();
  // The second poll of a move makes it; the stream of records is polled before that of copies.
  EXPECT_EQ(*polls, before + (GetParam() == LateKind::kImport ? 2 : 3));
}

TEST_P(LateMoves, HoldTheEndOfACacheUntilTheDeadline) {
  LateMove it(GetParam());
  const std::shared_ptr<const int> polls = it.polls;
  const int before = *polls;
  it.end();
  EXPECT_GT(*polls, before + 3);
}

// The allocators do not follow the late move, so all ranks take the same pages.
TEST(LateImports, OfOneRankLeaveTheAllocatorsAlike) {
  const Shape shape{.ranks = 2};
  Stream stream;
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options_of(shape));
        const Stream mine = export_of(mesh, cache, filled(mesh, cache, kImported, kImport));
        if (mesh.rank().value == 0) stream = mine;
      },
      mesh_of(shape));
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options_of(shape));
        LateBackend& late = stage(cache, 1);
        export_of(mesh, cache, filled(mesh, cache, 9, kBase));
        const std::chrono::milliseconds deadline = mesh.world().deadline();
        fail_import(mesh, cache, late, stream, 1);
        mesh.world().set_deadline(deadline);
        cache.check_replicas();
        const std::int64_t tokens = cache.allocator().free_pages() * shape.page_size;
        const SequenceId sequence = filled(mesh, cache, tokens, kNew);
        cache.check_replicas();
        end_moves(late.stream());
        EXPECT_EQ(others(mesh, cache, sequence, kNew), 0);
        cache.allocator().verify_integrity();
      },
      mesh_of(shape));
}

/// Also an import comes after them, and then an export.
TEST(LateCopies, EndBeforeAStreamUsesPages) {
  LateMove it(LateKind::kCopies);
  const Stream stream = exported({}, options_of({}), kImported);
  const auto import = [&] {
    MemorySource source(stream);
    return it.cache().import_sequence(&source).sequence;
  };
  EXPECT_THROW(import(), StreamError);
  MemorySink sink;
  EXPECT_THROW(it.cache().export_sequence(it.base, &sink), StreamError);
  EXPECT_TRUE(it.late().is_waiting());
  it.late().stick(false);
  const SequenceId sequence = import();
  EXPECT_FALSE(it.late().is_waiting());
  EXPECT_TRUE(export_of(it.cache().mesh(), it.cache(), sequence) == stream);
}

TEST(LateCopies, MayBeOfAnyGroup) {
  CacheOptions options = options_of({});
  options.groups = {{.layers = {1}}};
  Mesh mesh(make_single_communicator(), mesh_of({}));
  KvCache cache(mesh, options);
  const SequenceId base = filled(mesh, cache, kImported, kBase);
  LateBackend& late = make_late(cache, 1);
  fail_copies(mesh, cache, late, base);
  EXPECT_THROW(cache.planes(0), Timeout);
  late.copies().stick(false);
  cache.planes(0);
  EXPECT_FALSE(late.copies().is_waiting());
}

TEST(LateCopies, ThatAreDoneHoldNoOne) {
  Mesh mesh(make_single_communicator(), mesh_of({}));
  KvCache cache(mesh, options_of({}));
  const SequenceId base = filled(mesh, cache, kImported, kBase);
  const std::shared_ptr<const int> polls = stage(cache, 1).polls();
  cache.make_writable(cache.fork(base), 0, kImported);
  const int before = *polls;
  EXPECT_EQ(before, 1 + 2);
  cache.planes(0);
  EXPECT_EQ(*polls, before);
}

/// Rank 1's copies of the pages of rank 0, which would be drained, are late: so none moves, and
/// rank 1 gives the new pages to another sequence.
TEST(LateCopies, OfPagesThatDoNotMoveAfterAllLeaveTheirPlacesToOthers) {
  const Shape shape{.ranks = 2};
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options_of(shape));
        LateBackend& late = make_late(cache, 0);
        const SequenceId base = filled(mesh, cache, kImported, kBase);
        const bool is_late = mesh.page_rank().value == 1;
        const std::chrono::milliseconds deadline = mesh.kv_comm().deadline();
        if (is_late) mesh.kv_comm().set_deadline(std::chrono::milliseconds(50));
        if (is_late) late.stick_copies();
        EXPECT_THROW(cache.drain(PageRank{0}), Error);
        mesh.kv_comm().set_deadline(deadline);
        EXPECT_EQ(late.is_copying(), is_late);
        cache.check_replicas();
        const std::int64_t tokens = cache.allocator().free_pages() * shape.page_size;
        const SequenceId sequence = filled(mesh, cache, tokens, kNew);
        if (is_late) end_moves(late.copies());
        EXPECT_EQ(others(mesh, cache, base, kBase), 0);
        EXPECT_EQ(others(mesh, cache, sequence, kNew), 0);
        cache.allocator().verify_integrity();
      },
      mesh_of(shape));
}

}  // namespace
}  // namespace kvmesh::test
