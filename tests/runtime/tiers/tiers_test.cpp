// Tiers through KvCache: what was evicted comes back, with the same bytes, on any number of ranks.
#include <sys/stat.h>

#include <fstream>
#include <random>

#include "tests/runtime/tiers/tiers_contract.hpp"

namespace kvmesh::test {

INSTANTIATE_TYPED_TEST_SUITE_P(Loopback, TiersContract, TierPlaces, PlaceNames);

namespace {

TEST(HostTier, KeepsWhatFitsAndDropsWhatIsTooMuchAtOnce) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = tier_options(6);
  options.tiers = {.host_bytes = 2 * page_bytes(1), .stores_per_operation = 1};
  KvCache cache(mesh, options), plain(mesh, tier_options(12));
  (void)ask(cache, plain, counted(0, 16));
  const SequenceId large = cache.create();
  cache.reserve(large, 6 * kPage);
  const TierCounts host = cache.tier_statistics().host;
  EXPECT_EQ(host.stores, 1) << "the page nearest to the beginning";
  EXPECT_EQ(host.pages, 1);
  cache.erase(large);
  EXPECT_EQ(ask(cache, plain, counted(0, 16)), kPage);
}

void ask_on(const Folder& folder, int ranks, int heads, std::int64_t expected) {
  run_on_threads(ranks,
                 [&](Mesh& mesh) {
                   CacheOptions options = tier_options(8);
                   options.tiers = {.directory = folder.path(), .direct = ranks == 2};
                   KvCache cache(mesh, options), plain(mesh, tier_options(12));
                   EXPECT_EQ(ask(cache, plain, counted(0, 22)), expected) << ranks << " ranks";
                   cache.flush_tiers();
                 },
                 {.head_parallel = heads, .threads = 1});
}

TEST(FileTier, RestartFindsPagesOnAnotherMesh) {
  Folder folder;
  ask_on(folder, 4, 2, 0);
  EXPECT_EQ(folder.files().size(), 12u) << "6 pages, 2 ranges of heads";
  ask_on(folder, 2, 1, 20);
  ask_on(folder, 1, 1, 20);
  ask_on(folder, 2, 2, 20);
}

TEST(FileTier, RanksTakeTheirHeadsOfLargerFiles) {
  Folder folder;
  ask_on(folder, 1, 1, 0);
  ask_on(folder, 4, 2, 20);
}

TEST(FileTier, BadFilesAreMissesOnAllRanks) {
  for (const std::string way : {"corrupt", "truncated", "foreign", "other"}) {
    Folder folder;
    const auto run = [&](std::int64_t expected, bool faulty) {
      run_on_threads(2,
                     [&](Mesh& mesh) {
                       CacheOptions options = tier_options(8);
                       options.tiers.directory = folder.path();
                       KvCache cache(mesh, options), plain(mesh, tier_options(12));
                       const std::int64_t found = ask(cache, plain, counted(0, 16));
                       EXPECT_EQ(found < expected, faulty) << way << ": " << found;
                       const FileFaults faults = cache.tier_statistics().faults;
                       const std::int64_t mine =
                           faults.corrupt + faults.truncated + faults.foreign + faults.io;
                       const auto all = all_gather_value(cache.mesh().world(), mine, "faults");
                       EXPECT_EQ(all[0] + all[1] > 0, faulty) << way;
                       cache.flush_tiers();
                     },
                     {.threads = 1});
    };
    run(0, false);
    const std::vector<fs::path> files = folder.files();
    ASSERT_EQ(files.size(), 4u);
    if (way == "truncated") fs::resize_file(files[2], fs::file_size(files[2]) - 5);
    if (way == "other") fs::copy_file(files[1], files[2], fs::copy_options::overwrite_existing);
    if (way == "corrupt" || way == "foreign") {
      std::fstream file(files[2], std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(way == "corrupt" ? 200 : 8);
      file.put('\x55');
    }
    run(16, true);
    run(16, false);  // the page was stored again
  }
}

TEST(FileTier, TakesRangesOfHeadsAlone) {
  for (const char* name : {"heads-0-1.bak", "heads-0-65537", "heads-0-131073", "heads--1-1"}) {
    Folder folder;
    ask_on(folder, 1, 1, 0);
    const fs::path heads = folder.files().front().parent_path().parent_path().parent_path();
    fs::rename(heads, heads.parent_path() / name);
    ask_on(folder, 1, 1, 0);
  }
}

TEST(FileTier, PipesAreNoPages) {
  Folder folder;
  ask_on(folder, 1, 1, 0);
  for (const fs::path& file : folder.files()) {
    fs::remove(file);
    ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
  }
  ask_on(folder, 1, 1, 0);
}

/// Another version of the files has folders of its own: neither is in the other's way.
TEST(FileTier, FolderHasTheVersionOfItsFiles) {
  Folder folder;
  ask_on(folder, 1, 1, 0);
  const fs::path page = folder.files().front();
  std::ifstream file(page, std::ios::binary);
  file.seekg(8);
  const std::string version = "-v" + std::to_string(file.get() + 256 * file.get());
  const std::string name = fs::relative(page, folder.path()).begin()->string();
  EXPECT_TRUE(name.ends_with(version)) << name << " has no " << version;
}

/// A cache of 8 pages and files alone, for prompts of 4 pages.
class FileUse : public testing::Test {
 protected:
  /// Returns how many tokens of prompt `number` were found; all of its pages leave the device.
  std::int64_t ask_for(std::int32_t number) {
    const std::int64_t found = ask(*cache_, plain_, counted(100 * number, 16));
    cache_->flush_tiers();
    const SequenceId large = cache_->create();
    cache_->reserve(large, 8 * kPage);
    cache_->erase(large);
    cache_->flush_tiers();
    return found;
  }
  void start(std::int64_t pages, Eviction eviction = Eviction::kHits) {
    CacheOptions options = tier_options(8);
    options.prefix.eviction = eviction;
    options.tiers = {.directory = folder_.path(), .file_bytes = pages * (page_bytes(1) + 64)};
    cache_.emplace(mesh_, options);
  }

  Folder folder_;
  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  KvCache plain_{mesh_, tier_options(12)};
  std::optional<KvCache> cache_;
};

TEST_F(FileUse, UseRenewsThePlaceOfAFile) {
  start(8);
  EXPECT_EQ(ask_for(1), 0);
  EXPECT_EQ(ask_for(2), 0);
  EXPECT_EQ(ask_for(1), 16);
  EXPECT_EQ(ask_for(3), 0);
  EXPECT_EQ(cache_->tier_statistics().file.removed, 4);
  EXPECT_EQ(ask_for(1), 16);
  EXPECT_EQ(ask_for(2), 0);
}

TEST_F(FileUse, FollowsThePolicyOfTheCache) {
  for (const Eviction eviction : {Eviction::kLru, Eviction::kSegmented}) {
    start(8, eviction);
    for (const std::int32_t number : {1, 1, 2, 3}) (void)ask_for(number);
    EXPECT_EQ(ask_for(1), eviction == Eviction::kLru ? 0 : 16) << "the other two fill the tier";
    cache_.reset();
    fs::remove_all(folder_.path());
  }
}

TEST_F(FileUse, TheEndsOfPromptsLeaveBeforeTheirBeginnings) {
  start(6);
  EXPECT_EQ(ask_for(1), 0);
  EXPECT_EQ(ask_for(2), 0);
  EXPECT_EQ(ask_for(1), 8) << "two pages had to leave";
}

TEST_F(FileUse, IsKnownToALaterRun) {
  start(8);
  EXPECT_EQ(ask_for(1), 0);
  EXPECT_EQ(ask_for(2), 0);
  const auto past = fs::file_time_type::clock::now() - std::chrono::hours(1);
  for (const fs::path& file : folder_.files()) fs::last_write_time(file, past);
  EXPECT_EQ(ask_for(1), 16);
  start(4);
  EXPECT_EQ(folder_.files().size(), 4u);
  EXPECT_EQ(ask_for(1), 16);
}

TEST(FileTier, PagesOfOtherScalesAreMisses) {
  Folder folder;
  const auto run = [&](float scale, std::int64_t expected) {
    run_on_threads(2,
                   [&](Mesh& mesh) {
                     const auto options = [&](int pages) {
                       CacheOptions made = tier_options(pages);
                       made.dtype = Dtype::kFloat8E4M3;
                       made.scales = {.kind = ScaleKind::kPerHead,
                                      .k_heads = {0.01f, 0.03f},
                                      .v_heads = {0.02f, scale}};
                       return made;
                     };
                     CacheOptions with_files = options(8);
                     with_files.tiers = {.directory = folder.path()};
                     KvCache cache(mesh, with_files), plain(mesh, options(12));
                     EXPECT_EQ(ask(cache, plain, counted(0, 22)), expected) << scale;
                     cache.flush_tiers();
                   },
                   {.threads = 1});
  };
  run(0.01f, 0);
  run(0.01f, 20);
  run(0.02f, 0);
}

TEST(FileTier, StaysWithinItsBytes) {
  Folder folder;
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = tier_options(8);
  options.tiers = {.directory = folder.path(), .file_bytes = 3 * (page_bytes(1) + 64)};
  KvCache cache(mesh, options), plain(mesh, tier_options(12));
  for (int i = 0; i < 4; ++i) (void)ask(cache, plain, counted(100 * i, 16));
  cache.flush_tiers();
  EXPECT_EQ(folder.files().size(), 3u);
  EXPECT_EQ(cache.tier_statistics().file.pages, 3);
  EXPECT_GT(cache.tier_statistics().file.removed, 0);
  options.tiers.file_bytes = page_bytes(1) + 64;
  KvCache again(mesh, options);
  EXPECT_EQ(folder.files().size(), 1u) << "those of an earlier run count, too";
}

/// Serves one prompt of a cache in which layer 1 sees 7 positions, and evicts all pages of it.
std::int64_t ask_groups(const Folder& folder, int ranks, int heads, std::int64_t host_bytes,
                        std::int64_t least = 20) {
  std::int64_t found = 0;
  run_on_threads(ranks,
                 [&](Mesh& mesh) {
                   CacheOptions options = tier_options(10);
                   options.groups = {{.layers = {1}, .window = 7}};
                   KvCache plain(mesh, options);
                   options.tiers = {.host_bytes = host_bytes, .directory = folder.path()};
                   KvCache cache(mesh, options);
                   const auto tokens = counted(0, 22);
                   const std::int64_t first = ask(cache, plain, tokens);
                   const SequenceId large = cache.create();
                   cache.reserve(large, cache.allocator().free_pages() * kPage);
                   cache.erase(large);
                   EXPECT_GE(ask(cache, plain, tokens), least) << ranks << " ranks";
                   cache.flush_tiers();
                   if (mesh.rank().value == 0) found = first;
                 },
                 {.head_parallel = heads, .threads = 1});
  return found;
}

TEST(Tiers, GroupsAndWindowsComeBack) {
  Folder folder;
  EXPECT_EQ(ask_groups(folder, 2, 1, 1 << 20), 0);
  EXPECT_EQ(ask_groups(folder, 1, 1, 0), 20) << "the files of another mesh";
  EXPECT_EQ(ask_groups(folder, 4, 2, 0), 20);
  int truncated = 0;
  for (const fs::path& file : folder.files()) {
    if (file.string().find("/layers-1-1/") == std::string::npos) continue;
    fs::resize_file(file, 70);
    ++truncated;
  }
  EXPECT_EQ(truncated, 6);
  EXPECT_LT(ask_groups(folder, 2, 1, 0, 0), 20);
  std::int64_t found = 0;  // those that were read are removed, and stored again
  for (int run = 0; run < 6 && found < 20; ++run) found = ask_groups(folder, 2, 1, 0, 0);
  EXPECT_EQ(found, 20);
}

TEST(FileTier, RemovesWhatKilledProcessesLeft) {
  Folder folder;
  ask_on(folder, 1, 1, 0);
  const fs::path page = folder.files().front();
  std::array<char, 256> host{};
  ASSERT_EQ(::gethostname(host.data(), host.size() - 1), 0);
  const auto part = [&](const std::string& process, const std::string& of) {
    const fs::path path = page.string() + "." + process + ".1@" + of + ".tmp";
    std::ofstream(path) << "part";
    return path;
  };
  const fs::path dead = part("2147483646", host.data()),
                 mine = part(std::to_string(::getpid()), host.data());
  const fs::path other = part("2147483646", "elsewhere"), old = part("2147483645", "elsewhere");
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(30));
  ask_on(folder, 1, 1, 20);
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(mine));
  EXPECT_TRUE(fs::exists(other));
}

TEST(Tiers, RefuseInvalidOptions) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = tier_options(6);
  options.tiers.host_bytes = 1 << 20;
  options.prefix.enabled = false;
  EXPECT_THROW(KvCache(mesh, options), InvalidArgument);
  options.prefix.enabled = true;
  options.tiers.model = "../x";
  EXPECT_THROW(KvCache(mesh, options), InvalidArgument);
  options.tiers = {.host_bytes = std::int64_t{1} << 62};
  EXPECT_THROW(KvCache(mesh, options), OutOfMemory) << "more pages than have numbers";
}

TEST(Tiers, RefuseWhatPageFilesHaveNoRoomFor) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  Folder folder;
  CacheOptions options = tier_options(6);
  options.tiers.directory = folder.path();
  const auto expect_refused = [&](const auto& change) {
    CacheOptions changed = options;
    change(changed);
    EXPECT_THROW(KvCache(mesh, changed), InvalidArgument);
  };
  expect_refused([](auto& it) { it.page_size = 1 << 16; });
  expect_refused([](auto& it) { it.layers = 1 << 16; });
  expect_refused([](auto& it) { it.kv_heads = it.q_heads = 1 << 16; });
  expect_refused([](auto& it) { it.tiers.directory += std::string("\0x", 2); });
  EXPECT_FALSE(fs::exists(folder.path()));
}

}  // namespace
}  // namespace kvmesh::test
