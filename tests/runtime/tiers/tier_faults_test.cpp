// Tiers whose calls of the system, or whose copies, fail or take their time.
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "runtime/tiers/host_move_stream.hpp"
#include "tests/allocator/seed.hpp"
#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/tiers/mixed_serving.hpp"

namespace kvmesh::test {
namespace {

/// Calls of the system that fail now and then.
class FaultyCalls final : public FileCalls {
 public:
  explicit FaultyCalls(std::uint64_t seed) : random_(seed) {}
  int open(const char* path, int flags) override {
    return fails() ? -1 : FileCalls::open(path, flags);
  }
  ssize_t read(int file, void* to, std::size_t size) override {
    return fails() ? -1 : FileCalls::read(file, to, size);
  }
  ssize_t write(int file, const void* from, std::size_t size) override {
    return fails() ? -1 : FileCalls::write(file, from, size);
  }
  int rename(const char* from, const char* to) override {
    return fails() ? -1 : FileCalls::rename(from, to);
  }
  int remove(const char* path) override { return fails() ? -1 : FileCalls::remove(path); }
  int make_folder(const char* path) override { return fails() ? -1 : FileCalls::make_folder(path); }

 private:
  bool fails() {
    const std::lock_guard lock(mutex_);
    constexpr int kErrors[] = {ENOSPC, EROFS, EIO};
    errno = kErrors[random_() % 3];
    return random_() % 10 == 0;
  }
  std::mutex mutex_;
  std::mt19937_64 random_;
};

TEST(TierFaults, FilesThatFailOnOneRankAreMissesOnAll) {
  SCOPED_TRACE(seed_note());
  const MixedFolder folder;
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   CacheOptions options = mixed_options(2, true);
                   options.tiers.directory = folder.path();
                   Serving serving(mesh, options, seed());
                   auto& state = inside(serving.cache());
                   state.tiers = std::make_unique<CacheTiers>(
                       state.mesh, state.options, state.groups, state.pools,
                       std::make_unique<FaultyCalls>(seed() + mesh.rank().value * 77u));
                   serving.run(800);
                   const TierStatistics tiers = serving.cache().tier_statistics();
                   const FileFaults& faults = tiers.faults;
                   const std::int64_t failed = faults.full + faults.denied + faults.io;
                   const auto all = all_gather_value(mesh.world(), failed, "faults");
                   EXPECT_GT(all[0] + all[1], 10);
                   EXPECT_GT(tiers.pages_back, 0);
                 },
                 {.threads = 1});
}

/// A disk that takes its time.
class SlowCalls final : public FileCalls {
 public:
  ssize_t read(int file, void* to, std::size_t size) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(read_ms));
    return FileCalls::read(file, to, size);
  }
  int rename(const char* from, const char* to) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(write_ms));
    return FileCalls::rename(from, to);
  }
  std::atomic<int> read_ms = 0, write_ms = 0;
};

TEST(SlowDisk, IsAMissAndEndsAFlushAtTheDeadline) {
  using namespace std::chrono_literals;
  const MixedFolder folder;
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  CacheOptions options = mixed_options(1, false);
  options.tiers.directory = folder.path();
  KvCache cache(mesh, options);
  auto& state = inside(cache);
  auto calls = std::make_unique<SlowCalls>();
  SlowCalls& disk = *calls;
  state.tiers.reset();
  state.options.tiers.host_bytes = 0;
  state.tiers = std::make_unique<CacheTiers>(state.mesh, state.options, state.groups, state.pools,
                                             std::move(calls));
  const SequenceId sequence = cache.create();
  fill(cache, sequence, 12);
  PrefixKey key = cache.make_prefix_key();
  key.append(std::vector<std::int32_t>(12, 3));
  cache.publish(sequence, key);
  cache.erase(sequence);
  state.mesh.world().set_deadline(200ms);
  disk.write_ms = 400;
  EXPECT_THROW(cache.flush_tiers(), Timeout);
  disk.write_ms = 0;
  state.mesh.world().set_deadline(10s);
  cache.flush_tiers();
  const SequenceId large = cache.create();
  cache.reserve(large, 20 * kPage);  // evicts all
  cache.erase(large);
  state.mesh.world().set_deadline(200ms);
  disk.read_ms = 300;
  PrefixMatch match = cache.match_prefix(key);
  EXPECT_EQ(match.tokens, 0);
  EXPECT_GT(cache.tier_statistics().faults.io, 0);
  cache.release(match);
  cache.allocator().verify_integrity();
  disk.read_ms = 0;
  state.mesh.world().set_deadline(10s);
  match = cache.match_prefix(key);
  EXPECT_EQ(match.tokens, 12);
  cache.release(match);
}

TEST(HostTier, ASecondStoreRenewsThePlaceOfAPage) {
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  KvCache cache(mesh, mixed_options(1, false));
  auto& state = inside(cache);
  PageCopies copies(state.pools, std::make_unique<HostMoveStream>(), mesh.world());
  HostTier tier({.pages_per_rank = 2, .eviction = Eviction::kLru}, copies, nullptr);
  const auto hash = [](std::uint8_t number) {
    PageHash of;
    of.bytes.fill(number);
    return of;
  };
  for (const std::uint8_t number : {1, 2, 1, 3})
    tier.submit_store(hash(number), {.page = {PageRank{0}, number}});
  EXPECT_EQ(tier.lookup(hash(1)), TierAnswer::kHit);
  EXPECT_EQ(tier.lookup(hash(2)), TierAnswer::kMiss);
  EXPECT_EQ(tier.lookup(hash(3)), TierAnswer::kHit);
  EXPECT_TRUE(tier.wait_for_stores(std::chrono::seconds(10)));
  EXPECT_EQ(tier.counts().stores, 3);
}

/// Gives tiers a stream whose moves fail while `fails`.
class FaultyCopies final : public OtherBackend {
 public:
  FaultyCopies(std::unique_ptr<Backend> real, const std::atomic<bool>& fails)
      : OtherBackend(std::move(real)), fails_(fails) {}
  std::unique_ptr<MoveStream> make_move_stream() override {
    return std::make_unique<HostMoveStream>([this](const PageMoves& moves) {
      if (fails_) throw Error("injected");
      move_pages(moves);
    });
  }

 private:
  const std::atomic<bool>& fails_;
};

// The content of a page whose copy has failed is unknown, so it must not be read.
TEST(CacheTiers, RefuseAllAfterACopyHasFailed) {
  for (const bool stores : {true, false}) {
    std::atomic<bool> fails = false;
    Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
    KvCache cache(mesh, mixed_options(1, false));
    auto& state = inside(cache);
    CacheGroup& group = state.groups.front();
    group.backend = std::make_unique<FaultyCopies>(std::move(group.backend), fails);
    state.tiers.reset();
    state.tiers =
        std::make_unique<CacheTiers>(state.mesh, state.options, state.groups, state.pools);
    const SequenceId sequence = cache.create();
    fill(cache, sequence, 12);
    PrefixKey key = cache.make_prefix_key();
    key.append(std::vector<std::int32_t>(12, 3));
    cache.publish(sequence, key);
    cache.erase(sequence);
    const SequenceId large = cache.create();
    fails = stores;
    cache.reserve(large, 20 * kPage);  // evicts all
    if (!stores) {
      cache.erase(large);
      fails = true;
      EXPECT_EQ(cache.match_prefix(key).tokens, 12);  // the copies may be under way
    }
    for (int i = 0; i < 2; ++i) {
      EXPECT_THROW(static_cast<void>(cache.pool(0)), Error);
      EXPECT_THROW(static_cast<void>(cache.match_prefix(key)), Error);
      EXPECT_THROW(static_cast<void>(cache.plan({{large, 1, 1}})), Error);
      fails = false;
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
