// The home threshold that is computed from a table of ways.
#include "runtime/memory/home_threshold.hpp"

#include <string>

#include "comm/combine/choice/table_text.hpp"
#include "tests/comm/combine/choice/agreed_table_case.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::test {
namespace {

/// A combine takes `least` microseconds of 1 KiB of rows, and twice as many of 64 KiB; a memory is
/// read at `gbs` GB/s.
WayTable table_of(double least, double gbs) {
  constexpr WayStrategy kPeer{WayKind::kPeer, CombineStrategy::kAllToAll};
  WayTable table;
  table.add(kPeer, Scatter::kHeads, {1 << 10, least});
  table.add(kPeer, Scatter::kHeads, {1 << 16, 2 * least});
  table.read_gbs = gbs;
  return table;
}

constexpr CombineShape kRows{1, 32, 127};  // 16 KiB

TEST(HomeThreshold, WeighsTheCombineAgainstWhatNeedNotBeRead) {
  // Two ranks save 2,048 bytes a token, a microsecond's reading of 1 GB/s is 1,000 bytes.
  EXPECT_EQ(measured_home_threshold(table_of(100, 1), {1, 1, 255}, 4096, 2), 49);  // 48.8
  EXPECT_EQ(measured_home_threshold(table_of(100, 4000), {1, 1, 255}, 4096, 2), 195313);
}

TEST(HomeThreshold, FollowsTimesRatesAndSizes) {
  const auto threshold = [](double least, double gbs, const CombineShape& rows, double token_bytes,
                            int ranks) {
    return measured_home_threshold(table_of(least, gbs), rows, token_bytes, ranks).value();
  };
  const std::int64_t usual = threshold(5, 4000, kRows, 4096, 2);
  EXPECT_GT(threshold(10, 4000, kRows, 4096, 2), usual) << "a slower combine";
  EXPECT_GT(threshold(5, 5000, kRows, 4096, 2), usual) << "a faster memory";
  EXPECT_GT(threshold(5, 4000, {1, 64, 127}, 4096, 2), usual) << "more rows to combine";
  EXPECT_LT(threshold(5, 4000, kRows, 8192, 2), usual) << "more to read per token";
  EXPECT_LT(threshold(5, 4000, kRows, 4096, 4), usual) << "less to read per rank";
}

TEST(HomeThreshold, NeedsTimesAndARate) {
  EXPECT_FALSE(measured_home_threshold(table_of(5, 0), kRows, 4096, 2));
  WayTable other = table_of(5, 4000);
  other.ways.front().scatter = Scatter::kAll;
  EXPECT_FALSE(measured_home_threshold(other, kRows, 4096, 2));
}

/// Makes a table of these ranks of two hosts, with `gbs` instead of what CPUs have. Collective.
void prepare_table(Mesh& mesh, const TemporaryDirectory& folder, double gbs) {
  DeviceGroup& group = mesh.device_group();
  group.set_hosts({.hosts = 2, .per_host = mesh.kv_parallel() / 2});
  group.prepare_ways();
  ASSERT_NE(group.way_table(), nullptr);
  if (mesh.kv_rank() == Rank{0}) {
    const auto file = std::filesystem::directory_iterator(folder.path())->path();
    WayTable table = made_up_table(50);
    table.read_gbs = gbs;
    write_text(file, to_text(key_in(text_of(file)), table));
  }
  barrier(mesh.kv_comm());
  group.prepare_ways();
  EXPECT_EQ(group.way_table()->read_gbs, gbs);
}

std::int64_t threshold_of(Mesh& mesh) {
  CacheOptions options = small_cache_options();
  options.home_threshold_tokens = kMeasuredHomeThreshold;
  KvCache cache(mesh, options);
  for (const std::int64_t each :
       all_gather_value(mesh.world(), cache.options().home_threshold_tokens)) {
    EXPECT_EQ(each, cache.options().home_threshold_tokens);
  }
  return cache.options().home_threshold_tokens;
}

/// On each column of the mesh, whose tables are measured one after another, and have other rates.
void expect_thresholds(int head_parallel, const std::vector<double>& gbs_of_column,
                       std::int64_t expected) {
  const TemporaryDirectory folder;
  const Variable cache("KVMESH_CACHE_DIR", folder.path().c_str());
  const Variable use("KVMESH_COMBINE_TABLE", "on");
  run_on_threads(4 * head_parallel,
                 [&](Mesh& mesh) {
                   for (int column = 0; column < head_parallel; ++column) {
                     if (mesh.rank().value % head_parallel == column) {
                       prepare_table(mesh, folder, gbs_of_column[static_cast<std::size_t>(column)]);
                     }
                     barrier(mesh.world());
                   }
                   EXPECT_EQ(threshold_of(mesh), expected);
                 },
                 {.head_parallel = head_parallel, .threads = 1});
}

// A token has 2 heads of 8 + 6 floats, 112 bytes, of which four ranks save 84. The hierarchical way
// takes 5 us.
TEST(HomeThreshold, IsComputedWhenACacheIsMade) {
  expect_thresholds(1, {1.0}, 60);  // 5,000 / 84 = 59.5
  expect_thresholds(1, {0.25}, 15);
}

TEST(HomeThreshold, OfRankZeroCountsOnAllColumns) {
  expect_thresholds(2, {2.0, 0.5}, 239);  // 56 bytes a token: 10,000 / 42 = 238.1
  expect_thresholds(2, {0.5, 2.0}, 60);
}

TEST(HomeThreshold, IsTheDefaultWhereNothingIsMeasured) {
  for (const int ranks : {1, 3}) {
    run_on_threads(ranks, [](Mesh& mesh) {
      EXPECT_EQ(mesh.device_group().way_table(), nullptr);
      EXPECT_EQ(threshold_of(mesh), CacheOptions{}.home_threshold_tokens);
    });
  }
  const Variable use("KVMESH_COMBINE_TABLE", "on");
  const TemporaryDirectory folder;
  const Variable cache("KVMESH_CACHE_DIR", folder.path().c_str());
  run_on_threads(4, [](Mesh& mesh) {
    mesh.device_group().set_hosts({.hosts = 2, .per_host = 2});
    mesh.device_group().prepare_ways();
    EXPECT_EQ(mesh.device_group().way_table()->read_gbs, 0) << "not measured on CPUs";
    EXPECT_EQ(threshold_of(mesh), CacheOptions{}.home_threshold_tokens);
  });
}

}  // namespace
}  // namespace kvmesh::test
