// Ranks that serve from tiers whose file calls and copies the tests hold back, let go and let fail.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>

#include "tests/runtime/cache/gated_backend.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {

// As cache_inside.hpp does.
auto& loadings_of(CacheTiers& tiers);
template <auto Member>
struct OpenedLoads {
  friend auto& loadings_of(CacheTiers& tiers) { return tiers.*Member; }
};
template struct OpenedLoads<&CacheTiers::loadings_>;

/// The state of a rank's disk.
class Disk {
 public:
  void hold(bool holds) {
    const std::lock_guard lock(mutex_);
    holds_ = holds;
    changed_.notify_all();
  }
  void fail(bool fails) {
    const std::lock_guard lock(mutex_);
    fails_ = fails;
  }
  /// The pages' files that were opened so far, those included that are held back.
  std::int64_t reads() {
    const std::lock_guard lock(mutex_);
    return reads_;
  }
  /// Waits while the disk holds. Returns whether the call fails.
  bool pass(bool reads) {
    std::unique_lock lock(mutex_);
    reads_ += reads;
    changed_.wait(lock, [this] { return !holds_; });
    return fails_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool holds_ = false, fails_ = false;
  std::int64_t reads_ = 0;
};

class HeldCalls final : public FileCalls {
 public:
  explicit HeldCalls(Disk& disk) : disk_(disk) {}
  int open(const char* path, int flags) override {
    if (std::string_view(path).ends_with(".page") && disk_.pass(true)) {
      errno = EIO;
      return -1;
    }
    return FileCalls::open(path, flags);
  }
  int rename(const char* from, const char* to) override {
    disk_.pass(false);
    return FileCalls::rename(from, to);
  }

 private:
  Disk& disk_;
};

/// A rank's cache with a file tier, beside one that holds all.
class HeldCache {
 public:
  static constexpr int kPages = 8;  ///< of each rank

  HeldCache(Mesh& mesh, const Folder& folder, std::int64_t host_pages = 0)
      : mesh_(mesh), plain_(mesh, tier_options(3 * kPages)) {
    CacheOptions options = tier_options(kPages);
    options.tiers = {.host_bytes = host_pages * page_bytes(1), .directory = folder.path()};
    cache_.emplace(mesh, options);
    auto& state = inside(*cache_);
    for (CacheGroup& group : state.groups)
      group.backend = std::make_unique<GatedBackend>(std::move(group.backend), copies_run_);
    state.tiers.reset();
    state.tiers =
        std::make_unique<CacheTiers>(state.mesh, state.options, state.groups, state.pools,
                                     after_late_moves(state), std::make_unique<HeldCalls>(disk));
  }
  ~HeldCache() {
    disk.hold(false);
    hold_copies(false);
  }
  HeldCache(const HeldCache&) = delete;
  HeldCache& operator=(const HeldCache&) = delete;

  KvCache& cache() { return *cache_; }
  CacheTiers& tiers() { return *inside(*cache_).tiers; }
  Mesh& mesh() { return mesh_; }
  void destroy() { cache_.reset(); }
  void hold_copies(bool holds) {
    copies_run_ = !holds;
    copies_run_.notify_all();
  }

  PrefixKey key_of(std::span<const std::int32_t> tokens) {
    PrefixKey key = cache().make_prefix_key();
    key.append(tokens);
    return key;
  }
  /// Serves the tokens. Files have their full pages then, and the device does not.
  PrefixKey store(std::span<const std::int32_t> tokens) {
    (void)ask(cache(), plain_, tokens);
    cache().flush_tiers();
    evict();
    barrier(mesh_.world());  // all have written their files
    return key_of(tokens);
  }
  /// Publishes the tokens, without a flush.
  PrefixKey publish(std::span<const std::int32_t> tokens) {
    PrefixKey key = key_of(tokens);
    const SequenceId sequence = cache().create();
    (void)prefill(cache(), sequence, key);
    cache().publish(sequence, key);
    cache().erase(sequence);
    return key;
  }
  void evict() {
    const SequenceId large = cache().create();
    cache().reserve(large, cache().allocator().free_pages() * kPage);
    cache().erase(large);
  }

  /// A match's tokens, and those that are loading, which are equal on all ranks.
  struct Found {
    std::int64_t tokens = 0, loading = 0;
    friend bool operator==(const Found&, const Found&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Found& found) {
      return out << found.tokens << " tokens and " << found.loading << " loading";
    }
  };
  Found now(const PrefixKey& key) {
    const PrefixMatch match = cache().match_prefix_now(key);
    cache().release(match);
    const Found found{match.tokens, match.loading};
    for (const Found& other : all_gather_value(mesh_.world(), found, "found"))
      EXPECT_EQ(other, found);
    cache().check_replicas();
    cache().allocator().verify_integrity();
    return found;
  }
  /// Asks until nothing is loading. Returns the tokens.
  std::int64_t in_the_end(const PrefixKey& key) {
    for (;;) {
      const Found found = now(key);
      if (found.loading == 0) return found.tokens;
      std::this_thread::yield();
    }
  }
  /// Goes on from what a match has now, and compares the output.
  void expect_content(PrefixKey key, std::int64_t tokens) {
    const PrefixMatch match = cache().match_prefix_now(key);
    EXPECT_EQ(match.tokens, tokens);
    expect_content(cache().create_with_prefix(match), key);
  }
  void expect_content(SequenceId sequence, PrefixKey& key) {
    key.append(counted(2000, 1));
    const std::vector<float> got = prefill(cache(), sequence, key);
    const SequenceId alone = plain_.create();
    const std::vector<float> expected = prefill(plain_, alone, key);
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
    plain_.erase(alone);
    cache().erase(sequence);
    cache().allocator().verify_integrity();
  }
  /// The number of leading pages of the loads under way that are not on the rank.
  std::int64_t pages_before(int rank) {
    const auto& loading = loadings_of(tiers()).front();
    const auto pages = cache().allocator().pages(loading.pin.pin);
    const auto first =
        std::ranges::find_if(pages, [&](PageId it) { return it.rank().value == rank; });
    return first - pages.begin();
  }
  void wait_for_own_loads() {
    for (const auto& load : loadings_of(tiers()).front().loads) load.job.wait();
  }
  std::int64_t of_all(std::int64_t mine) {
    const auto all = all_gather_value(mesh_.world(), mine, "sum");
    return std::accumulate(all.begin(), all.end(), std::int64_t{0});
  }

  Disk disk;

 private:
  Mesh& mesh_;
  KvCache plain_;
  std::atomic<bool> copies_run_ = true;
  std::optional<KvCache> cache_;
};

/// Runs `body` on 1, 2 and 3 ranks, or on as many as are given.
inline void on_held_ranks(const std::function<void(HeldCache&)>& body,
                          std::vector<int> counts = {1, 2, 3}, std::int64_t host_pages = 0) {
  for (const int ranks : counts) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks");
    const Folder folder;
    run_on_threads(ranks,
                   [&](Mesh& mesh) {
                     HeldCache served(mesh, folder, host_pages);
                     body(served);
                   },
                   {.threads = 1});
  }
}

}  // namespace kvmesh::test
