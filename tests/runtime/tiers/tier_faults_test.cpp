// Tiers whose calls of the system, or whose copies, fail or take their time.
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <thread>

#include "runtime/tiers/host_move_stream.hpp"
#include "tests/allocator/seed.hpp"
#include "tests/runtime/cache/faulty_backend.hpp"
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
                       after_late_moves(state),
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
                                             after_late_moves(state), std::move(calls));
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
    state.tiers = std::make_unique<CacheTiers>(state.mesh, state.options, state.groups, state.pools,
                                               after_late_moves(state));
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

/// A cache with pages to evict, and a fork whose next tokens are on a copy of a page on another
/// rank and on pages that were evicted. One wait or copy of one rank fails.
class Evicting {
 public:
  Evicting(Mesh& mesh, int failing) : mesh_(mesh), is_failing_(mesh.rank().value == failing) {
    CacheGroup& group = inside(cache_).groups.front();
    group.backend = std::make_unique<FaultyBackend>(std::move(group.backend), faults_);
    fork_ = cache_.create();
    fill(cache_, fork_, 4 * kPage + 1);
    const SequenceId parent = std::exchange(fork_, cache_.fork(fork_));
    full_ = cache_.allocator().pages(parent).back().rank();
    fill_pool();
  }

  void plan() { plan_ = cache_.plan({{fork_, 2 * kPage, 0}}); }
  /// Moves pages that are held to the other rank.
  void shrink() { cache_.resize(full_, 5); }

  /// Runs `call` with step `fails` failing on one rank. Returns whether it has such a step.
  bool fail(int fails, const std::function<void()>& call, const std::string& error_of_others) {
    faults_ = {.fails = is_failing_ ? fails : -1};
    std::string error;
    try {
      call();
    } catch (const Timeout& late) {
      ADD_FAILURE() << late.what();
      throw;
    } catch (const Error& thrown) {
      error = thrown.what();
    }
    const bool mine = is_failing_ && faults_.steps > fails;
    faults_ = {};
    const auto all =
        all_gather_value(mesh_.world(), static_cast<std::uint8_t>(mine), "was it injected");
    const bool injected = std::ranges::find(all, 1) != all.end();
    const std::string expected = mine ? "injected" : injected ? error_of_others : "";
    EXPECT_EQ(error.substr(0, expected.size()), expected);
    EXPECT_EQ(error.empty(), expected.empty()) << error;
    cache_.check_replicas();
    cache_.allocator().verify_integrity();
    return injected;
  }
  const PageAllocator& allocator() const { return cache_.allocator(); }
  SequenceId fork() const { return fork_; }
  PageRank full() const { return full_; }

  /// How many of the pages' keys hit on this rank, tiers included; nothing where they refuse.
  std::optional<std::int64_t> hits() {
    std::int64_t pages = 0;
    for (const PrefixKey& key : keys_) {
      try {
        const PrefixMatch match = cache_.match_prefix(key);
        pages += match.tokens / kPage;
        cache_.release(match);
      } catch (const Error&) {
        return std::nullopt;
      }
    }
    return pages;
  }

 private:
  /// Leaves no free page, and cached ones on the other rank alone.
  void fill_pool() {
    std::vector<SequenceId> made;
    while (cache_.allocator().free_pages() > 0) {
      made.push_back(cache_.create());
      fill(cache_, made.back(), kPage);
    }
    for (const SequenceId sequence : made) {
      if (cache_.allocator().pages(sequence)[0].rank() == full_) continue;
      keys_.push_back(cache_.make_prefix_key());
      keys_.back().append(
          std::vector<std::int32_t>(kPage, static_cast<std::int32_t>(keys_.size())));
      cache_.publish(sequence, keys_.back());
      cache_.erase(sequence);
    }
  }

  Mesh& mesh_;
  bool is_failing_;
  Faults faults_;
  KvCache cache_{mesh_, mixed_options(2, false)};
  SequenceId fork_;
  PageRank full_;
  std::vector<PrefixKey> keys_;
  std::optional<StepPlan> plan_;  // its destructor waits, too, but throws nothing
};

/// Lets each step of `call` fail on each rank, and runs `check` after each.
void fail_each_step(void (Evicting::*call)(), const std::string& error_of_others,
                    const std::function<void(const Evicting&, bool injected)>& check) {
  std::atomic<int> refusals = 0;
  for (int failing = 0; failing < 2; ++failing) {
    std::atomic<bool> injected = true;
    for (int fails = 0; injected; ++fails) {
      SCOPED_TRACE(testing::Message() << "rank " << failing << ", step " << fails);
      const auto on_rank = [&](Mesh& mesh) {
        Evicting evicting(mesh, failing);
        injected = evicting.fail(
            fails, [&] { (evicting.*call)(); }, error_of_others);
        check(evicting, injected);
        const std::int64_t hits = evicting.hits().value_or(-1);
        const auto all = all_gather_value(mesh.world(), hits, "hits");
        const std::int64_t other = all[static_cast<std::size_t>(1 - failing)];
        EXPECT_GT(other, 3);
        EXPECT_TRUE(hits < 0 || hits == other) << hits;
        refusals += hits < 0;
      };
      run_on_threads(2, on_rank, {.threads = 1, .deadline = std::chrono::seconds(5)});
    }
  }
  EXPECT_GT(refusals, 0) << "a store that could not be made";
}

TEST(TierFaults, ARankThatCannotStoreTakesPartInTheCopiesOfAPlan) {
  fail_each_step(&Evicting::plan, "", [](const Evicting& evicting, bool) {
    EXPECT_EQ(evicting.allocator().length(evicting.fork()), 6 * kPage + 1);
  });
}

TEST(TierFaults, ARankThatCannotStoreCancelsMovesOnAllRanks) {
  fail_each_step(&Evicting::shrink, "move pages: rank",
                 [](const Evicting& evicting, bool injected) {
                   EXPECT_EQ(evicting.allocator().pool_pages(evicting.full()), injected ? 10 : 5);
                 });
}

}  // namespace
}  // namespace kvmesh::test
