// Files over the limit that cannot be removed.
#include <atomic>
#include <cerrno>

#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

/// Some files cannot be removed.
class StuckCalls final : public FileCalls {
 public:
  enum Stuck : std::uint8_t { kNone, kFirst, kAll };
  std::atomic<Stuck> stuck = kNone;
  int remove(const char* path) override {
    const std::string name = path;
    if (stuck == kNone || !name.ends_with(".page")) return FileCalls::remove(path);
    if (first_.empty()) first_ = name;
    if (stuck == kFirst && name != first_) return FileCalls::remove(path);
    errno = EIO;
    return -1;
  }
  const std::string& first() const { return first_; }

 private:
  std::string first_;  // that was to be removed
};

/// A cache with room for three files, whose calls get stuck.
class StuckFiles : public testing::Test {
 protected:
  StuckFiles() {
    CacheOptions options = tier_options(8);
    options.tiers = {.directory = folder_.path(), .file_bytes = 3 * (page_bytes(1) + 64)};
    cache_.emplace(mesh_, options);
    auto& state = inside(*cache_);
    auto calls = std::make_unique<StuckCalls>();
    calls_ = calls.get();
    state.tiers.reset();
    state.tiers = std::make_unique<CacheTiers>(state.mesh, state.options, state.groups, state.pools,
                                               after_late_moves(state), std::move(calls));
  }
  void store_prompts(std::int32_t first, std::int32_t count) {
    for (std::int32_t i = first; i < first + count; ++i)
      (void)ask(*cache_, plain_, counted(100 * i, 16));
    cache_->flush_tiers();
  }
  std::int64_t files() const { return std::ssize(folder_.files()); }

  Folder folder_;
  Mesh mesh_{make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu}};
  KvCache plain_{mesh_, tier_options(12)};
  std::optional<KvCache> cache_;
  StuckCalls* calls_ = nullptr;
};

TEST_F(StuckFiles, StayAndOthersLeaveInTheirPlace) {
  calls_->stuck = StuckCalls::kFirst;
  store_prompts(0, 4);
  const TierStatistics tiers = cache_->tier_statistics();
  EXPECT_EQ(files(), 3);
  EXPECT_TRUE(fs::exists(calls_->first()));
  EXPECT_EQ(tiers.file.pages, 3);
  EXPECT_EQ(tiers.file.removed, tiers.file.stores - 3);
  EXPECT_GT(tiers.faults.io, 0);
}

TEST_F(StuckFiles, AllCountUntilTheyCanBeRemoved) {
  calls_->stuck = StuckCalls::kAll;
  store_prompts(0, 4);
  TierStatistics tiers = cache_->tier_statistics();
  EXPECT_GT(tiers.file.stores, 3);
  EXPECT_EQ(tiers.file.removed, 0);
  EXPECT_EQ(tiers.file.pages, tiers.file.stores);
  EXPECT_EQ(files(), tiers.file.pages);
  EXPECT_GT(tiers.faults.io, 0);
  calls_->stuck = StuckCalls::kNone;
  store_prompts(4, 1);
  tiers = cache_->tier_statistics();
  EXPECT_EQ(files(), 3);
  EXPECT_EQ(tiers.file.pages, 3);
  EXPECT_EQ(tiers.file.removed, tiers.file.stores - 3);
}

TEST_F(StuckFiles, ThatAreCorruptStillCount) {
  (void)ask(*cache_, plain_, counted(0, 12));
  cache_->flush_tiers();
  EXPECT_EQ(files(), 3);
  for (const fs::path& file : folder_.files()) fs::resize_file(file, 70);
  const SequenceId large = cache_->create();
  cache_->reserve(large, 8 * kPage);  // evicts all
  cache_->erase(large);
  calls_->stuck = StuckCalls::kAll;
  PrefixKey key = cache_->make_prefix_key();
  key.append(counted(0, 12));
  cache_->release(cache_->match_prefix(key));
  const TierStatistics tiers = cache_->tier_statistics();
  EXPECT_GT(tiers.faults.truncated, 0);
  EXPECT_EQ(tiers.faults.io, tiers.faults.truncated);
  EXPECT_EQ(tiers.file.pages, files()) << "what cannot be removed is there";
}

}  // namespace
}  // namespace kvmesh::test
