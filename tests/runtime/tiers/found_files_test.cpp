// Files that earlier runs have left: which stay, and which rank counts them.
#include "runtime/tiers/found_files.hpp"

#include <chrono>
#include <map>
#include <random>

#include "tests/allocator/seed.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

/// Pages of parts in turn, the oldest first. As with XXH3, the latter half of a hash is zero.
std::vector<FoundPage> found_pages(int count, int parts, std::int64_t bytes) {
  std::mt19937_64 random(seed());
  std::vector<FoundPage> pages;
  for (int i = 0; i < count; ++i) {
    FoundPage page{
        .time = fs::file_time_type(std::chrono::seconds(i)), .part = i % parts, .bytes = bytes};
    for (std::size_t at = 0; at < 16; ++at)
      page.hash.bytes[at] = static_cast<std::uint8_t>(random());
    pages.push_back(page);
  }
  return pages;
}

std::int64_t bytes_of(const std::vector<FoundPage>& pages) {
  std::int64_t bytes = 0;
  for (const FoundPage& page : pages) bytes += page.bytes;
  return bytes;
}

using Times = std::map<fs::file_time_type, int>;
void count(Times& times, const std::vector<FoundPage>& pages) {
  for (const FoundPage& page : pages) ++times[page.time];
}

TEST(FoundFiles, StayUpToTheWholeLimitAndTheOldestLeave) {
  SCOPED_TRACE(seed_note());
  constexpr std::int64_t kBytes = 10;
  for (const auto& [parts, ranks] : {std::pair(1, 1), {1, 4}, {2, 1}, {2, 3}}) {
    for (const int excess : {0, 1, 7, 120}) {
      const auto pages = found_pages(120, parts, kBytes);
      const int most = 120 - excess;
      Times kept, left;
      for (int i = 0; i < parts * ranks; ++i) {
        const FileSharers sharers{.bytes = most * kBytes,
                                  .parts = parts,
                                  .ranks = ranks,
                                  .part = i / ranks,
                                  .rank = i % ranks};
        const FoundShare share = share_found(pages, sharers);
        EXPECT_LT(bytes_of(share.kept), sharers.bytes_per_rank() + kBytes);
        count(kept, share.kept);
        count(left, share.excess);
      }
      ASSERT_EQ(std::ssize(kept), most) << parts << " parts, " << ranks << " ranks";
      ASSERT_EQ(std::ssize(left), excess);
      for (const auto& [time, times] : kept) EXPECT_EQ(times, 1);
      for (const auto& [time, times] : left) EXPECT_EQ(times, 1);
      if (most > 0 && excess > 0) {
        EXPECT_LT(left.rbegin()->first, kept.begin()->first);
      }
    }
  }
}

/// Rank 0 has started later and finds pages that the others did not find, or does not find some.
TEST(FoundFiles, ThatOneRankDoesNotSeeChangeFewOthers) {
  SCOPED_TRACE(seed_note());
  constexpr int kPages = 1000, kRanks = 4;
  for (const std::int64_t most : {1000, 1100, 4000}) {
    const auto pages = found_pages(kPages, 1, 1);
    auto fewer = pages;
    for (const int gone : {700, 300, 2}) fewer.erase(fewer.begin() + gone);
    Times counts;
    for (int rank = 0; rank < kRanks; ++rank) {
      const FileSharers sharers{.bytes = most, .ranks = kRanks, .rank = rank};
      const FoundShare share = share_found(rank == 0 ? fewer : pages, sharers);
      EXPECT_TRUE(share.excess.empty());
      count(counts, share.kept);
    }
    const auto wrong =
        kPages - std::ranges::count_if(counts, [](const auto& it) { return it.second == 1; });
    EXPECT_LE(wrong, 3 * kRanks) << "room for " << most;
  }
}

/// A rank that looks after others have removed their part of the excess removes its own, no more.
TEST(FoundFiles, AnExcessThatHasLeftInPartIsTheSame) {
  SCOPED_TRACE(seed_note());
  constexpr int kRanks = 3;
  auto pages = found_pages(100, 1, 1);
  Times left;
  for (int rank = 0; rank < kRanks; ++rank) {
    const auto share = share_found(pages, {.bytes = 60, .ranks = kRanks, .rank = rank});
    count(left, share.excess);
    std::erase_if(pages, [&](const FoundPage& page) { return left.contains(page.time); });
  }
  EXPECT_EQ(std::ssize(left), 40);
  EXPECT_EQ(left.rbegin()->first, fs::file_time_type(std::chrono::seconds(39)));
}

TEST(FoundFiles, OfOnePageCountTogether) {
  auto files = found_pages(3, 1, 10);
  files.push_back(files[0]);
  files.back().time += std::chrono::hours(1);
  files.push_back(files[1]);
  files.back().part = 1;
  const auto pages = merge_found(files);
  ASSERT_EQ(pages.size(), 4u);
  EXPECT_EQ(pages.back().hash, files[0].hash) << "it was used last";
  EXPECT_EQ(pages.back().bytes, 20);
}

TEST(FoundFiles, OfSeveralPartsAreCountedByOneOfThem) {
  PageHash hash;
  EXPECT_EQ(part_of_file(0, 2, 2, hash), 0);
  EXPECT_EQ(part_of_file(2, 1, 2, hash), 1);
  EXPECT_EQ(part_of_file(3, 1, 2, hash), 1);
  EXPECT_EQ(part_of_file(2, 6, 2, hash), 1);
  hash.bytes[0] = 1;
  EXPECT_EQ(part_of_file(2, 6, 2, hash), 2);
  hash.bytes[0] = 2;
  EXPECT_EQ(part_of_file(2, 6, 2, hash), 3);
}

std::int64_t bytes_in(const Folder& folder) {
  std::int64_t bytes = 0;
  for (const fs::path& file : folder.files())
    bytes += static_cast<std::int64_t>(fs::file_size(file));
  return bytes;
}

/// One run of a program that asks for prompts of four pages each.
struct RunOptions {
  int ranks = 1, heads = 1;
  PrefixHash hash = PrefixHash::kSha256Cbor;
  std::int64_t file_bytes = std::int64_t{1} << 30;
  std::int32_t first = 0, prompts = 12;
};

/// Returns how many tokens were found. `expected` are the files there are when the cache is made.
std::int64_t run(const Folder& folder, const RunOptions& how, std::size_t expected) {
  SCOPED_TRACE(testing::Message() << how.ranks << " ranks, " << how.heads << " parts, "
                                  << name(how.hash));
  std::int64_t found = 0;
  run_on_threads(how.ranks,
                 [&](Mesh& mesh) {
                   const auto options = [&](int pages) {
                     CacheOptions made = tier_options(pages);
                     made.placement = Placement::kStriped;
                     made.prefix.hash = how.hash;
                     return made;
                   };
                   CacheOptions with_files = options(8);
                   with_files.tiers = {.directory = folder.path(), .file_bytes = how.file_bytes};
                   KvCache cache(mesh, with_files), plain(mesh, options(12));
                   barrier(mesh.world());
                   if (mesh.rank().value == 0) {
                     EXPECT_EQ(folder.files().size(), expected);
                   }
                   barrier(mesh.world());
                   std::int64_t tokens = 0;
                   for (std::int32_t i = 0; i < how.prompts; ++i) {
                     tokens += ask(cache, plain, counted(100 * (how.first + i), 16));
                     cache.flush_tiers();
                     barrier(mesh.world());
                     if (mesh.rank().value == 0) {
                       EXPECT_LE(bytes_in(folder), how.file_bytes) << "prompt " << i;
                     }
                     barrier(mesh.world());
                   }
                   if (mesh.rank().value == 0) found = tokens;
                 },
                 {.head_parallel = how.heads, .threads = 1});
  return found;
}

TEST(Restart, KeepsAllFilesUpToTheWholeLimit) {
  for (const PrefixHash hash : {PrefixHash::kSha256Cbor, PrefixHash::kXxh3}) {
    for (const int ranks : {1, 2, 3, 4}) {
      const Folder folder;
      EXPECT_EQ(run(folder, {.ranks = ranks, .hash = hash}, 0), 0);
      const std::size_t files = folder.files().size();
      EXPECT_GE(files, 48u);
      for (const int later : {1, 2, 3, 4}) {
        const std::int64_t limit = bytes_in(folder);
        EXPECT_EQ(run(folder, {.ranks = later, .hash = hash, .file_bytes = limit}, files), 12 * 16);
      }
    }
  }
}

TEST(Restart, KeepsAllFilesOfOtherHeadsUpToTheWholeLimit) {
  for (const int heads : {1, 2}) {
    const Folder folder;
    EXPECT_EQ(run(folder, {.ranks = 4, .heads = heads}, 0), 0);
    const std::size_t files = folder.files().size();
    for (const auto& [ranks, parts] : {std::pair(1, 1), {2, 2}, {2, 1}, {4, 2}}) {
      const RunOptions later{
          .ranks = ranks, .heads = parts, .file_bytes = bytes_in(folder), .prompts = 0};
      EXPECT_EQ(run(folder, later, files), 0);
    }
  }
}

TEST(Restart, RemovesTheOldestFilesOnAllRanks) {
  for (const int ranks : {1, 3}) {
    const Folder folder;
    (void)run(folder, {.ranks = 2}, 0);
    std::vector<fs::path> files = folder.files();
    std::ranges::shuffle(files, std::mt19937(5));
    const auto start = fs::file_time_type::clock::now() - std::chrono::hours(1);
    for (std::size_t i = 0; i < files.size(); ++i)
      fs::last_write_time(files[i], start + std::chrono::seconds(i));
    const std::int64_t one = page_bytes(1) + 64;
    (void)run(folder, {.ranks = ranks, .file_bytes = 20 * one, .prompts = 0}, 20);
    files.erase(files.begin(), files.end() - 20);
    std::ranges::sort(files);
    EXPECT_EQ(folder.files(), files);
  }
}

TEST(Restart, WithOtherHeadsStaysWithinTheLimit) {
  const Folder folder;
  const std::int64_t limit = 20 * (page_bytes(1) + 128);
  std::int32_t first = 0;
  for (const int heads : {2, 1, 2, 1}) {
    const std::size_t before = first == 0 ? 0 : folder.files().size();
    (void)run(folder, {.ranks = 2, .heads = heads, .file_bytes = limit, .first = first}, before);
    EXPECT_LE(bytes_in(folder), limit);
    EXPECT_GT(bytes_in(folder), limit / 2);
    first += 12;
  }
}

TEST(Restart, RenewsFilesOfOtherHeadsThatAreHit) {
  const Folder folder;
  (void)run(folder, {.ranks = 2, .heads = 2}, 0);
  const std::size_t files = folder.files().size();
  const auto past = fs::file_time_type::clock::now() - std::chrono::hours(1);
  for (const fs::path& file : folder.files()) fs::last_write_time(file, past);
  EXPECT_EQ(run(folder, {.first = 5, .prompts = 1}, files), 16);
  const std::int64_t limit = 8 * (page_bytes(2) + 64);
  EXPECT_EQ(run(folder, {.file_bytes = limit, .first = 5, .prompts = 1}, 8), 16);
}

TEST(Restart, CountsNoBadFilesOfOtherHeadsThatAreRemoved) {
  const Folder folder;
  (void)run(folder, {}, 0);
  const std::int64_t files = std::ssize(folder.files());
  for (const fs::path& file : folder.files()) fs::resize_file(file, 70);
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   CacheOptions options = tier_options(8);
                   options.placement = Placement::kStriped;
                   options.tiers.directory = folder.path();
                   KvCache cache(mesh, options);
                   const auto expect_counted = [&](std::int64_t fewest, std::int64_t most) {
                     std::int64_t sum = 0;
                     for (const std::int64_t pages : all_gather_value(
                              mesh.world(), cache.tier_statistics().file.pages, "count files"))
                       sum += pages;
                     EXPECT_EQ(sum, std::ssize(folder.files()));
                     EXPECT_GE(sum, fewest);
                     EXPECT_LE(sum, most);
                     barrier(mesh.world());
                   };
                   expect_counted(files, files);
                   for (std::int32_t i = 0; i < 12; ++i) {
                     PrefixKey key = cache.make_prefix_key();
                     key.append(counted(100 * i, 16));
                     cache.release(cache.match_prefix(key));
                   }
                   expect_counted(0, files - 12);
                 },
                 {.head_parallel = 2, .threads = 1});
}

}  // namespace
}  // namespace kvmesh::test
