// Files that prove bad on one rank: their pages are hits again once they are stored anew, and the
// files are counted as often as they are there.
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

/// A rank's cache of few pages with a file tier, beside one that holds all.
class Served {
 public:
  Served(Mesh& mesh, const Folder& folder, const TierOptions& tiers)
      : mesh_(mesh), folder_(folder), tiers_(tiers), plain_(mesh, tier_options(12)) {
    tiers_.directory = folder.path();
    restart();
  }

  /// Goes on with a new cache.
  void restart() {
    CacheOptions options = tier_options(4);
    options.tiers = tiers_;
    cache_.emplace(mesh_, options);
  }
  KvCache& cache() { return *cache_; }
  /// A request of two pages. Returns how many of its tokens were found.
  std::int64_t ask_for(int number, AskWay way = AskWay::kNow) {
    return ask(*cache_, plain_, counted(100 * number, 8), nullptr, {}, way);
  }
  /// All pages of all ranks are in files then.
  void flush() {
    cache_->flush_tiers();
    barrier(mesh_.world());
  }
  /// Evicts all pages by one operation.
  void evict() {
    const SequenceId large = cache_->create();
    cache_->reserve(large, cache_->allocator().free_pages() * kPage);
    cache_->erase(large);
    flush();
  }
  void truncate_files() {
    if (mesh_.rank().value == 0)
      for (const fs::path& file : folder_.files()) fs::resize_file(file, 70);
    barrier(mesh_.world());
  }
  /// The files that all ranks count.
  std::int64_t counted_files() {
    std::int64_t sum = 0;
    for (const std::int64_t pages :
         all_gather_value(mesh_.world(), cache_->tier_statistics().file.pages, "count files"))
      sum += pages;
    return sum;
  }
  std::int64_t files() {
    const std::int64_t files = std::ssize(folder_.files());
    barrier(mesh_.world());
    return files;
  }

 private:
  Mesh& mesh_;
  const Folder& folder_;
  TierOptions tiers_;
  KvCache plain_;
  std::optional<KvCache> cache_;
};

void on_ranks(int ranks, int heads, const TierOptions& tiers,
              const std::function<void(Served&)>& body) {
  SCOPED_TRACE(testing::Message() << ranks << " ranks, " << tiers.host_bytes << " bytes of host");
  const Folder folder;
  run_on_threads(ranks,
                 [&](Mesh& mesh) {
                   Served served(mesh, folder, tiers);
                   body(served);
                 },
                 {.head_parallel = heads, .threads = 1});
}

TEST(BadFiles, AreHitsAgainWhenTheirPagesHaveLeftTheHostTier) {
  for (const int ranks : {1, 2, 3}) {
    on_ranks(ranks, 1, {.host_bytes = 2 * page_bytes(1)}, [](Served& served) {
      EXPECT_EQ(served.ask_for(0), 0);
      served.flush();
      served.restart();
      served.truncate_files();
      EXPECT_EQ(served.ask_for(0), 0);
      for (int i = 1; i < 16; ++i) EXPECT_EQ(served.ask_for(i), 0);
      served.flush();
      EXPECT_EQ(served.ask_for(0), 8);
    });
  }
}

/// Of the pages that leave, all but one are dropped; a flush has stored them before.
TEST(BadFiles, AreHitsAgainWhenAFlushHasStoredTheirPages) {
  for (const std::int64_t host_bytes : {std::int64_t{0}, 1 * page_bytes(1)}) {
    for (const int ranks : {1, 2, 3}) {
      on_ranks(ranks, 1, {.host_bytes = host_bytes, .stores_per_operation = 1}, [](Served& served) {
        EXPECT_EQ(served.ask_for(0), 0);
        served.flush();
        served.restart();
        served.truncate_files();
        EXPECT_EQ(served.ask_for(0), 0);
        served.flush();
        EXPECT_EQ(served.ask_for(1), 0);  // its pages leave last
        served.evict();
        EXPECT_EQ(served.ask_for(0), 8);
      });
    }
  }
}

/// A page whose store is dropped keeps its bad file, which is not read at each match.
TEST(BadFiles, AreMissesWhileNoRankHasStoredTheirPages) {
  on_ranks(2, 1, {.stores_per_operation = 1}, [](Served& served) {
    EXPECT_EQ(served.ask_for(0), 0);
    served.flush();
    served.restart();
    served.truncate_files();
    EXPECT_EQ(served.ask_for(0), 0);
    EXPECT_EQ(served.ask_for(1), 0);
    served.evict();
    EXPECT_EQ(served.ask_for(0), 0);
  });
}

TEST(BadFiles, CountOnce) {
  for (const AskWay way : {AskWay::kWaits, AskWay::kNow}) {
    for (const std::int64_t host_bytes : {std::int64_t{0}, 2 * page_bytes(1)}) {
      for (const auto& [ranks, heads] : {std::pair(1, 1), {2, 1}, {3, 1}, {4, 2}}) {
        on_ranks(ranks, heads, {.host_bytes = host_bytes / heads}, [&](Served& served) {
          constexpr int kPrompts = 20;
          for (int i = 0; i < kPrompts; ++i) EXPECT_EQ(served.ask_for(i, way), 0);
          served.flush();
          served.restart();
          EXPECT_EQ(served.counted_files(), served.files());
          served.truncate_files();
          for (int i = 0; i < kPrompts; ++i) EXPECT_EQ(served.ask_for(i, way), 0);
          served.flush();
          EXPECT_EQ(served.counted_files(), served.files());
        });
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
