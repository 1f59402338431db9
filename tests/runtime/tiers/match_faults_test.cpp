// Matches that bring pages back from files, of which a wait or a copy fails on one rank: all ranks
// throw or all match, none waits for the deadline, and the files are found again.
#include <atomic>
#include <chrono>
#include <thread>

#include "tests/runtime/cache/faulty_backend.hpp"
#include "tests/runtime/tiers/mixed_serving.hpp"

namespace kvmesh::test {
namespace {

// As cache_inside.hpp does.
auto& groups_of(CacheTiers& tiers);
template <auto Member>
struct OpenedTiers {
  friend auto& groups_of(CacheTiers& tiers) { return tiers.*Member; }
};
template struct OpenedTiers<&CacheTiers::tiers_>;

constexpr std::chrono::milliseconds kDeadline{5000};
constexpr std::int64_t kTokens = 6 * kPage;

struct Case {
  int ranks = 2;
  int failing = 0;
  bool has_files = true;
  bool has_host = false;
  bool has_groups = false;
  bool evicts = false;  ///< matches evict pages, which are stored
  bool waits = true;    ///< matches wait for files; else they are asked for until all has come
};

/// Files that take their time to be written.
class SlowStores final : public FileCalls {
 public:
  explicit SlowStores(const std::atomic<int>& ms) : ms_(ms) {}
  int rename(const char* from, const char* to) override {
    std::this_thread::sleep_for(std::chrono::milliseconds(ms_));
    return FileCalls::rename(from, to);
  }

 private:
  const std::atomic<int>& ms_;
};

CacheOptions options_of(const Case& it, const std::string& folder) {
  CacheOptions options = mixed_options(it.ranks, it.has_groups);
  if (it.has_groups) options.groups[0].window = 0;
  if (!it.has_files) return options;
  options.tiers.directory = folder;
  options.tiers.host_bytes = it.has_host ? options.tiers.host_bytes / 5 : 0;
  return options;
}

/// A cache with a prefix that files have, of which the device has nothing.
class Matching {
 public:
  Matching(Mesh& mesh, const Case& it, const std::string& folder)
      : mesh_(mesh), case_(it), cache_(mesh, options_of(it, folder)) {
    auto& state = inside(cache_);
    for (CacheGroup& group : state.groups)
      group.backend = std::make_unique<FaultyCopies>(
          std::make_unique<FaultyBackend>(std::move(group.backend), faults_), copies_fail);
    state.tiers.reset();
    state.tiers = std::make_unique<CacheTiers>(state.mesh, state.options, state.groups, state.pools,
                                               after_late_moves(state),
                                               std::make_unique<SlowStores>(write_ms));
    key_ = publish(kTokens, 2);
    cache_.flush_tiers();
    on_any_rank(false);  // all have written their files
    evict();
    for (int i = 0; it.evicts && i < cache_.allocator().free_pages(); ++i) publish(kPage, 100 + i);
  }

  bool is_failing() const { return mesh_.rank().value == case_.failing; }
  KvCache& cache() { return cache_; }
  const PrefixKey& key() const { return key_; }

  /// Publishes a prefix whose keys are `first` and its positions.
  PrefixKey publish(std::int64_t tokens, std::int32_t first) {
    const CacheOptions& o = cache_.options();
    const SequenceId sequence = cache_.create();
    StepPlan plan = cache_.plan({{sequence, tokens, 0}});
    std::vector<float> numbers;
    for (std::int64_t t = 0; t < tokens; ++t)
      numbers.insert(numbers.end(), static_cast<std::size_t>(o.kv_heads * o.k_dim),
                     static_cast<float>(first + t));
    for (int layer = 0; layer < o.layers; ++layer)
      plan.append(layer, tensor(numbers.data(), {tokens, o.kv_heads, o.k_dim}),
                  tensor(numbers.data(), {tokens, o.kv_heads, o.v_dim}));
    PrefixKey key = cache_.make_prefix_key();
    key.append(std::vector<std::int32_t>(static_cast<std::size_t>(tokens), first));
    cache_.publish(sequence, key);
    cache_.erase(sequence);
    return key;
  }
  /// Evicts all pages.
  void evict() {
    const SequenceId large = cache_.create();
    cache_.reserve(large, cache_.allocator().free_pages() * kPage);
    cache_.erase(large);
  }

  PrefixMatch match() {
    for (;;) {
      const PrefixMatch match =
          case_.waits ? cache_.match_prefix(key_) : cache_.match_prefix_now(key_);
      if (match.loading == 0) return match;
      cache_.release(match);
      std::this_thread::yield();
    }
  }
  void fail_at(int step) { faults_ = {.fails = is_failing() ? step : -1}; }
  /// Matches with step `fails` of this rank failing, if it is the one. Returns whether it has it.
  bool match_with(int fails) {
    fail_at(fails);
    const std::string error = error_of([&] { cache_.release(match()); });
    const bool mine = is_failing() && faults_.steps > fails;
    faults_ = {};
    const bool injected = on_any_rank(mine);
    expect_error(error, mine ? "injected" : injected ? of_others() : "");
    return injected;
  }

  /// All ranks match, and have their tokens.
  void expect_match() {
    PrefixMatch match;
    ASSERT_EQ(error_of([&] { match = this->match(); }), "");
    EXPECT_EQ(match.tokens, kTokens);
    const SequenceId sequence = cache_.create_with_prefix(match);
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      const TensorView k = cache_.planes(layer)[0];
      const auto pages = cache_.allocator(cache_.group_of(layer)).pages(sequence);
      for (std::int64_t at = 0; at < kTokens; ++at) {
        const PageId page = pages[static_cast<std::size_t>(at / kPage)];
        if (page.rank() != mesh_.page_rank()) continue;
        const std::int64_t place = page.index() * k.stride(0) + at % kPage * k.stride(2);
        EXPECT_EQ(static_cast<const float*>(k.data)[place], static_cast<float>(2 + at));
      }
    }
    cache_.erase(sequence);
  }
  /// All ranks refuse the match, because one has failed.
  void expect_refusal(const std::string& of_failing) {
    const auto match = [&] { static_cast<void>(this->match()); };
    expect_error(error_of(match), is_failing() ? of_failing : of_others());
  }
  void expect_whole() {
    cache_.check_replicas();
    for (int g = 0; g < cache_.groups(); ++g) {
      cache_.allocator(g).verify_integrity();
      EXPECT_EQ(cache_.allocator(g).sequences(), 0);
      const auto& o = cache_.options();
      EXPECT_EQ(cache_.allocator(g).free_pages(), o.pages_per_rank * case_.ranks) << "group " << g;
    }
  }
  std::string of_others() const {
    return "match_prefix: rank " + std::to_string(case_.failing) + " could not read its tiers";
  }
  bool on_any_rank(bool mine) {
    const auto all = all_gather_value(mesh_.world(), static_cast<std::uint8_t>(mine), "any");
    return std::ranges::find(all, 1) != all.end();
  }
  /// Returns what the call throws, which must not take as long as a wait for a rank that is gone.
  std::string error_of(const std::function<void()>& call) {
    const auto begin = std::chrono::steady_clock::now();
    std::string error;
    try {
      call();
    } catch (const Error& thrown) {
      error = thrown.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begin, kDeadline / 2) << error;
    return error;
  }

  std::atomic<bool> copies_fail = false;
  std::atomic<int> write_ms = 0;

 private:
  static void expect_error(const std::string& error, const std::string& expected) {
    EXPECT_EQ(error.substr(0, expected.size()), expected);
    EXPECT_EQ(error.empty(), expected.empty()) << error;
  }

  Mesh& mesh_;
  Case case_;
  Faults faults_;
  KvCache cache_;
  PrefixKey key_{cache_.make_prefix_key()};
};

/// Runs a case on its ranks, for 2 and 3 of them and each that fails.
void on_each_failing_rank(Case it, const std::function<void(Matching&)>& run) {
  for (it.ranks = 2; it.ranks <= 3; ++it.ranks)
    for (it.failing = 0; it.failing < it.ranks; ++it.failing) {
      SCOPED_TRACE(testing::Message()
                   << it.ranks << " ranks, of which " << it.failing << " fails, host "
                   << it.has_host << ", groups " << it.has_groups << ", evicts " << it.evicts
                   << ", waits " << it.waits);
      const MixedFolder folder;
      const auto on_rank = [&](Mesh& mesh) {
        Matching matching(mesh, it, folder.path());
        run(matching);
      };
      run_on_threads(it.ranks, on_rank, {.threads = 1, .deadline = kDeadline});
    }
}

// Its steps are the wait before evicted pages are stored, if there are some, and the wait before
// pages are written. Without the first, what the host tier should hold is unknown: it is final.
TEST(MatchFaults, AWaitOfOneRankThatFailsEndsTheMatchOnAll) {
  for (const Case& it :
       {Case{}, Case{.evicts = true}, Case{.has_host = true},
        Case{.has_host = true, .has_groups = true, .evicts = true}, Case{.waits = false},
        Case{.evicts = true, .waits = false},
        Case{.has_host = true, .has_groups = true, .evicts = true, .waits = false}}) {
    const int steps = it.evicts ? 2 : 1;
    for (int fails = 0; fails <= steps; ++fails) {
      on_each_failing_rank(it, [&](Matching& matching) {
        EXPECT_EQ(matching.match_with(fails), fails < steps) << "step " << fails;
        matching.expect_whole();
        if (fails + 1 == steps || fails == steps) {
          matching.expect_match();
        } else {
          matching.expect_refusal("injected");
        }
        matching.expect_whole();
      });
    }
  }
}

// No rank waits for another then: the others have their match, and the index is the same on all.
TEST(MatchFaults, AWaitOfOneRankThatFailsWithoutFilesEndsTheMatchThere) {
  on_each_failing_rank({.has_files = false}, [&](Matching& matching) {
    KvCache& cache = matching.cache();
    const auto match = [&] { EXPECT_EQ(cache.match_prefix(matching.key()).tokens, kTokens); };
    matching.fail_at(0);
    EXPECT_EQ(matching.error_of(match), matching.is_failing() ? "injected" : "");
    matching.fail_at(-1);
    cache.check_replicas();
    cache.allocator().verify_integrity();
    if (!matching.is_failing()) return;
    EXPECT_EQ(matching.error_of(match), "injected");
    EXPECT_THROW(static_cast<void>(cache.pool(0)), Error);
    // The match has published pages that were never filled: none may go to a tier.
    PageCopies& copies = groups_of(*inside(cache).tiers)[0]->copies();
    std::vector<std::byte> image(copies.page_bytes());
    const TierJob job = copies.pack(0, image.data());
    copies.start();
    EXPECT_FALSE(job.get());
  });
}

// The pages that have come are given up, so the failed copy makes no token wrong; but the rank
// refuses to go on.
TEST(MatchFaults, ACopyOfOneRankThatFailsIsAMissOnAll) {
  for (const bool waits : {true, false}) {
    on_each_failing_rank({.waits = waits}, [&](Matching& matching) {
      matching.copies_fail = matching.is_failing();
      EXPECT_FALSE(matching.match_with(100));  // no error
      matching.copies_fail = false;
      matching.expect_whole();
      if (matching.is_failing()) {
        EXPECT_THROW(static_cast<void>(matching.cache().pool(0)), Error);
      }
      matching.expect_refusal("tiers: pages could not be copied");
      matching.expect_whole();
    });
  }
}

TEST(MatchFaults, ACopyThatFailsWhileALookupWaitsEndsTheMatchOnAll) {
  on_each_failing_rank({}, [&](Matching& matching) {
    KvCache& cache = matching.cache();
    matching.publish(kTokens, 200);
    matching.write_ms = matching.is_failing() ? 200 : 0;
    matching.evict();  // keeps the files' thread busy
    const PrefixKey behind = matching.publish(kTokens, 300);
    matching.copies_fail = matching.is_failing();
    matching.evict();
    if (!matching.is_failing()) cache.flush_tiers();
    matching.on_any_rank(false);  // the others have written their files
    const std::string error = matching.error_of([&] { cache.release(cache.match_prefix(behind)); });
    const std::string expected =
        matching.is_failing() ? "tiers: pages could not be copied" : matching.of_others();
    EXPECT_EQ(error.substr(0, expected.size()), expected);
    matching.write_ms = 0;
    matching.copies_fail = false;
    matching.expect_whole();
    matching.expect_refusal(expected);
  });
}

// All pages are in memory, but one finds no room there, so it is looked for in files, on all ranks.
TEST(MatchFaults, ARankThatRefusesTakesPartWhereAHostPageFindsNoRoom) {
  for (const bool waits : {true, false}) {
    on_each_failing_rank({.has_host = true, .waits = waits}, [&](Matching& matching) {
      KvCache& cache = matching.cache();
      const PrefixKey key = matching.publish(kPage, 50);
      const PageRank home = cache.allocator().published_page(key.hashes()[0]).rank();
      matching.evict();
      cache.drain(home);
      matching.publish(kPage, 60);
      matching.fail_at(0);
      const SequenceId large = cache.create();
      const auto evict = [&] { cache.reserve(large, cache.allocator().free_pages() * kPage); };
      EXPECT_EQ(matching.error_of(evict), matching.is_failing() ? "injected" : "");
      cache.erase(large);
      matching.fail_at(-1);
      const auto match = [&] {
        static_cast<void>(waits ? cache.match_prefix(key) : cache.match_prefix_now(key));
      };
      const std::string error = matching.error_of(match);
      const std::string expected = matching.is_failing() ? "injected" : matching.of_others();
      EXPECT_EQ(error.substr(0, expected.size()), expected);
      cache.check_replicas();
      cache.allocator().verify_integrity();
    });
  }
}

// The failed copy has left a page of unknown content, which no file may get.
TEST(MatchFaults, AFlushAfterAFailedCopyWritesNothing) {
  const MixedFolder folder;
  const Case alone{.ranks = 1, .has_host = true};
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  std::optional<PrefixKey> written, only_in_host;
  {
    Matching matching(mesh, alone, folder.path());
    KvCache& cache = matching.cache();
    written.emplace(matching.key());
    only_in_host.emplace(matching.publish(kPage, 50));
    matching.evict();
    matching.copies_fail = true;
    EXPECT_EQ(cache.match_prefix(*only_in_host).tokens, kPage);  // the copy is under way
    EXPECT_THROW(static_cast<void>(cache.pool(0)), Error);
    matching.copies_fail = false;
    EXPECT_THROW(cache.flush_tiers(), Error);
  }
  KvCache next(mesh, options_of(alone, folder.path()));
  EXPECT_EQ(next.match_prefix(*written).tokens, kTokens);
  EXPECT_EQ(next.match_prefix(*only_in_host).tokens, 0);
}

}  // namespace
}  // namespace kvmesh::test
