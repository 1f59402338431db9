// Tiers through KvCache: what was evicted comes back, with the same bytes, on any number of ranks.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <string>

#include "tests/runtime/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

namespace fs = std::filesystem;

constexpr int kHeads = 2, kKDim = 8, kVDim = 6, kQHeads = 4, kPage = 4;

std::vector<std::int32_t> counted(std::int32_t first, std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Keys and values that depend on tokens and positions; of the heads [head, head + heads).
std::vector<float> rows_of(std::span<const std::int32_t> tokens, std::int64_t first, int dim,
                           int head, int heads) {
  std::vector<float> rows;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (int j = head * dim; j < (head + heads) * dim; ++j)
      rows.push_back(
          static_cast<float>((tokens[i] * 7 + (first + static_cast<int>(i)) * 3 + j) % 11) - 5);
  return rows;
}

/// Appends the key's tokens past the sequence's length, and returns this rank's heads of the output
/// of the last token in the last layer.
std::vector<float> prefill(KvCache& cache, SequenceId sequence, const PrefixKey& key) {
  const std::int64_t length = cache.length(sequence);
  const auto rest = key.tokens().subspan(static_cast<std::size_t>(length));
  const std::int64_t count = std::ssize(rest);
  const int parts = cache.mesh().head_parallel(), part = cache.mesh().head_rank();
  const int kv = kHeads / parts, heads = kQHeads / parts;
  PlanOptions all;
  all.scatter = Scatter::kAll;
  StepPlan plan = cache.plan({{sequence, count, 1}}, all);
  const auto k = rows_of(rest, length, kKDim, part * kv, kv);
  const auto v = rows_of(rest, length, kVDim, part * kv, kv);
  const std::vector<float> q(static_cast<std::size_t>(heads * kKDim), 0.25f);
  std::vector<float> o(static_cast<std::size_t>(heads * kVDim), -1);
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    plan.run(layer,
             {tensor(q.data(), {1, heads, kKDim}), tensor(k.data(), {count, kv, kKDim}),
              tensor(v.data(), {count, kv, kVDim})},
             {tensor(o.data(), {1, heads, kVDim}), {}});
  }
  return o;
}

/// A request: returns how many of its tokens were found.
std::int64_t ask(KvCache& cache, KvCache& plain, std::span<const std::int32_t> tokens) {
  PrefixKey key = cache.make_prefix_key();
  key.append(tokens);
  const SequenceId sequence = cache.create_with_prefix(key);
  const std::int64_t found = cache.length(sequence);
  key.append(counted(1000, 3));  // at least one new token
  const std::vector<float> got = prefill(cache, sequence, key);
  const SequenceId alone = plain.create();
  const std::vector<float> expected = prefill(plain, alone, key);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
  cache.publish(sequence, key);
  cache.erase(sequence);
  plain.erase(alone);
  cache.check_replicas();
  cache.allocator().verify_integrity();
  return found;
}

std::int64_t page_bytes(int head_parallel) {
  return std::int64_t{2} * (kHeads / head_parallel) * kPage * (kKDim + kVDim) * 4;
}

CacheOptions tier_options(int pages) {
  CacheOptions options = small_cache_options();
  options.pages_per_rank = pages;
  options.home_threshold_tokens = 8;
  options.prefix.enabled = true;
  return options;
}

class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("kvmesh_tiers." + std::to_string(::getpid()))) {
    fs::remove_all(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  std::string path() const { return path_.string(); }
  std::vector<fs::path> files() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(path_))
      if (entry.path().extension() == ".page") files.push_back(entry.path());
    std::ranges::sort(files);
    return files;
  }

 private:
  fs::path path_;
};

TEST(HostTier, EvictedPagesComeBack) {
  for (int ranks = 1; ranks <= 3; ++ranks) {
    run_on_threads(ranks,
                   [ranks](Mesh& mesh) {
                     CacheOptions options = tier_options(6);
                     KvCache plain(mesh, tier_options(12));
                     options.tiers.host_bytes = 12 * page_bytes(1);
                     KvCache cache(mesh, options);
                     const auto first = counted(0, 16);
                     EXPECT_EQ(ask(cache, plain, first), 0);
                     for (int i = 1; i <= 2 * ranks; ++i)
                       (void)ask(cache, plain, counted(100 * i, 16));
                     PrefixKey key = cache.make_prefix_key();
                     key.append(first);
                     EXPECT_EQ(ask(cache, plain, first), 16) << ranks << " ranks";
                     EXPECT_GT(cache.tier_statistics().pages_back, 0);
                   },
                   {.threads = 1});
  }
}

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
    if (way != "foreign") run(16, false);  // the page was stored again
  }
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

TEST(Tiers, RandomRequestsFindWhatTheyShould) {
  Folder folder;
  for (const int ranks : {1, 3}) {
    run_on_threads(ranks,
                   [&](Mesh& mesh) {
                     CacheOptions options = tier_options(6);
                     options.tiers = {.host_bytes = 5 * page_bytes(1),
                                      .directory = folder.path(),
                                      .file_bytes = 20 * page_bytes(1),
                                      .stores_per_operation = 3};
                     KvCache cache(mesh, options), plain(mesh, tier_options(12));
                     std::mt19937 random(7);
                     for (int i = 0; i < 60; ++i) {
                       const auto tokens =
                           counted(static_cast<std::int32_t>(random() % 5) * 40, 1 + random() % 14);
                       const std::int64_t found = ask(cache, plain, tokens);
                       EXPECT_LE(found, std::ssize(tokens));
                     }
                     EXPECT_GT(cache.tier_statistics().pages_back, 0);
                   },
                   {.threads = 1});
  }
}

TEST(Tiers, RefusesWhatItCannotHold) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = tier_options(6);
  options.tiers.host_bytes = 1 << 20;
  options.prefix.enabled = false;
  EXPECT_THROW(KvCache(mesh, options), InvalidArgument);
  options.prefix.enabled = true;
  options.window = 8;
  EXPECT_THROW(KvCache(mesh, options), InvalidArgument);
  options.window = 0;
  options.tiers.model = "../x";
  EXPECT_THROW(KvCache(mesh, options), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
