// Forks that decode together read the pages that they share once, whatever ranks hold these.
#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {
namespace {

template <class Ranks>
class SharedPages : public testing::Test {
 protected:
  using Place = OnCpu<Ranks>;
};
using Places = testing::Types<LoopbackRanks<1>, LoopbackRanks<3>>;
TYPED_TEST_SUITE(SharedPages, Places, RankNames);

TYPED_TEST(SharedPages, AreReadOnceForAllForks) {
  CacheOptions options = small_cache(kSmallShape);
  options.pages_per_rank = 200;
  on_each_placement(place_of<typename TestFixture::Place>(), options, [](CheckedCache& cache) {
    const SequenceId parent = prompt(cache, 600);
    std::vector<BatchEntry> batch{{parent, 0, 1}};
    for (int i = 0; i < 9; ++i) batch.push_back({cache.fork(parent), 0, 1});
    EXPECT_TRUE(cache.step(batch, {})) << "of one length";
    const auto visited = [&](bool shares) {
      PlanOptions plan;
      plan.shares_prefixes = shares;
      return cache.cache().plan(batch, plan).tiles().visited;
    };
    EXPECT_LE(visited(true), visited(false));
    // A rank that holds few of the pages has nothing to gain.
    if (cache.cache().mesh().kv_parallel() == 1) {
      EXPECT_LT(5 * visited(true), visited(false));
    }
    for (std::size_t i = 0; i < batch.size(); ++i) {
      batch[i].append_tokens = static_cast<std::int64_t>(i);
      batch[i].query_tokens = 1 + static_cast<std::int64_t>(i % 2);
    }
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(cache.step(batch, {}));
    cache.truncate(batch[4].sequence, 301);
    batch[4].append_tokens = 1;
    EXPECT_TRUE(cache.step(batch, {})) << "one that shares fewer pages";
  });
}

}  // namespace
}  // namespace kvmesh::test
