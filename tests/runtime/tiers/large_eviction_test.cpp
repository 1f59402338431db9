// One operation that evicts most of a pool: tiers with room store every page.
#include <numeric>

#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kPages = 1200, kPromptPages = kPages - 8;

CacheOptions large_options(int ranks) {
  CacheOptions options = tier_options(static_cast<int>(kPages) / ranks);
  options.tiers = {.host_bytes = kPages * page_bytes(1), .stores_per_operation = kPages};
  return options;
}

std::vector<std::int32_t> prompt() { return counted(0, kPromptPages * kPage); }

/// An operation that evicts most of the pool. Afterwards there is room for the prompt again.
struct Evicts {
  const char* name;
  void (*run)(KvCache& cache);
  bool moves = false;  ///< pages move to another rank before they are evicted there
};

void erase_all(KvCache& cache, SequenceId sequence) {
  ASSERT_EQ(cache.allocator().cached_pages(), 0) << "the whole prompt is evicted";
  cache.erase(sequence);
}

void reserve(KvCache& cache) {
  const SequenceId large = cache.create();
  cache.reserve(large, kPages * kPage);
  erase_all(cache, large);
}

void append(KvCache& cache) {
  std::vector<BatchEntry> batch;
  for (int i = 0; i < 4; ++i) batch.push_back({cache.create(), kPages / 4 * kPage, 0});
  cache.plan(batch);
  for (int i = 1; i < 4; ++i) cache.erase(batch[static_cast<std::size_t>(i)].sequence);
  erase_all(cache, batch[0].sequence);
}

void make_smaller(KvCache& cache) {
  const int ranks = cache.mesh().kv_parallel();
  for (PageRank rank{0}; rank.value < ranks; ++rank.value) cache.resize(rank, 2);
  ASSERT_LE(cache.allocator().cached_pages(), 2 * ranks);
  for (PageRank rank{0}; rank.value < ranks; ++rank.value) cache.resize(rank, kPages / ranks);
}

/// Moves what there is room for, and evicts the rest.
void drain(KvCache& cache) {
  if (cache.mesh().kv_parallel() == 1) return make_smaller(cache);
  cache.drain(PageRank{0});
  cache.add_rank(PageRank{0});
}

void import(KvCache& cache) {
  KvCache other(cache.mesh(), tier_options(static_cast<int>(kPages)));
  const SequenceId sequence = other.create();
  fill(other, sequence, kPages * kPage);
  MemorySink sink;
  const bool is_first = cache.mesh().rank().value == 0;
  other.export_sequence(sequence, is_first ? &sink : nullptr);
  MemorySource source(sink.bytes());
  erase_all(cache, cache.import_sequence(is_first ? &source : nullptr).sequence);
}

class LargeEviction : public testing::TestWithParam<Evicts> {};

TEST_P(LargeEviction, LosesNoPage) {
  for (const int ranks : {1, 2}) {
    run_on_threads(ranks,
                   [&](Mesh& mesh) {
                     KvCache cache(mesh, large_options(ranks));
                     KvCache plain(mesh, tier_options(static_cast<int>(kPages)));
                     EXPECT_EQ(ask(cache, plain, prompt()), 0);
                     GetParam().run(cache);
                     if (HasFatalFailure()) throw Error("the prompt is not evicted");
                     const TierCounts mine = cache.tier_statistics().host;
                     const auto all = all_gather_value(mesh.world(), mine.stores, "stores");
                     EXPECT_EQ(std::reduce(all.begin(), all.end()),
                               cache.allocator().evicted_pages());
                     EXPECT_EQ(mine.drops, 0);
                     // A page comes back to the rank whose memory has it, which has half the room.
                     const bool has_room = ranks == 1 || !GetParam().moves;
                     const std::int64_t found = ask(cache, plain, prompt());
                     EXPECT_GE(found, kPages / 2 * kPage);
                     EXPECT_EQ(found == kPromptPages * kPage, has_room) << found;
                   },
                   {.threads = 1});
  }
}

INSTANTIATE_TEST_SUITE_P(Operations, LargeEviction,
                         testing::Values(Evicts{"reserve", reserve}, Evicts{"append", append},
                                         Evicts{"resize", make_smaller, true},
                                         Evicts{"drain", drain, true}, Evicts{"import", import}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(LargeEviction, CountsWhatOneOperationMayNotStore) {
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   CacheOptions options = large_options(2);
                   options.tiers.stores_per_operation = 100;
                   KvCache cache(mesh, options);
                   KvCache plain(mesh, tier_options(static_cast<int>(kPages)));
                   EXPECT_EQ(ask(cache, plain, prompt()), 0);
                   reserve(cache);
                   const TierCounts mine = cache.tier_statistics().host;
                   const auto all = all_gather_value(mesh.world(), mine, "counts of tiers");
                   EXPECT_EQ(all[0].stores + all[1].stores, 100);
                   EXPECT_EQ(all[0].drops + all[1].drops, kPromptPages - 100);
                   EXPECT_GT(mine.drops, 0) << "each rank counts its own pages";
                   EXPECT_EQ(ask(cache, plain, prompt()), 100 * kPage) << "the beginning";
                 },
                 {.threads = 1});
}

TEST(LargeEviction, ASmallerTierKeepsTheBeginning) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CacheOptions options = large_options(1);
  options.tiers.host_bytes = 40 * page_bytes(1);
  KvCache cache(mesh, options), plain(mesh, tier_options(static_cast<int>(kPages)));
  EXPECT_EQ(ask(cache, plain, prompt()), 0);
  reserve(cache);
  EXPECT_EQ(ask(cache, plain, prompt()), 40 * kPage);
}

}  // namespace
}  // namespace kvmesh::test
