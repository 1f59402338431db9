// Replays by caches that compute: hits of tiers, attention of several shapes, and its check.
#include "launch/replay/attend.hpp"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "launch/replay/attending_cache.hpp"
#include "tests/launch/replay/short_replay.hpp"

namespace kvmesh::replay {
namespace {

TEST(Replay, TiersServeWhatWasEvicted) {
  const Trace trace = short_requests();
  ReplayOptions options{.ranks = 2, .capacity_tokens = 8192, .home_threshold_tokens = 256};
  const std::int64_t without = counts_of(trace, options).hit_tokens;
  const ReplayOptions all{.ranks = 2, .capacity_tokens = 120'000};
  const std::int64_t most = counts_of(trace, all).hit_tokens;
  ASSERT_GT(most, without);
  options.host_tier_tokens = 40'000;
  const AttendCounts host = attend(trace, options, {.every = 3}, [](std::size_t) {});
  EXPECT_EQ(host.wrong, 0) << host.first_wrong;
  EXPECT_GT(host.tiers.pages_back, 0);
  EXPECT_EQ(host.tiers.host.loads, host.tiers.pages_back);
  EXPECT_GT(host.served.hit_tokens, without);
  const std::string folder = testing::TempDir() + "kvmesh_replay." + std::to_string(::getpid());
  options.page_size = 512;  // few pages, so that few stores are dropped
  options.host_tier_tokens = 4096;
  options.tier_folder = folder;
  options.file_tier_tokens = 200'000;
  std::int64_t stores = 0, loads = 0;
  for (int run = 0; run < 3; ++run) {  // later ones find the files of the first
    const AttendCounts files = attend(trace, options, {.every = 3}, [](std::size_t) {});
    EXPECT_EQ(files.wrong, 0) << files.first_wrong;
    stores += files.tiers.file.stores;
    loads += files.tiers.file.loads;
  }
  EXPECT_GT(stores, 0);
  EXPECT_GT(loads, 0);
  std::filesystem::remove_all(folder);
}

TEST(Replay, AttentionOverCachedPagesIsExact) {
  const Trace trace = short_requests();
  const AttendShape small{}, float16{.q_heads = 6, .kv_heads = 3, .dtype = Dtype::kFloat16},
      bfloat16{.layers = 2,
               .q_heads = 8,
               .kv_heads = 2,
               .dim = 32,
               .dtype = Dtype::kBFloat16,
               .queries = 40},
      float8{.q_heads = 2, .kv_heads = 2, .dim = 24, .dtype = Dtype::kFloat8E4M3};
  for (const AttendShape& shape : {small, float16, bfloat16, float8}) {
    SCOPED_TRACE(describe(shape));
    for (const double decode_ms : {0.0, 40.0}) {
      const ReplayOptions options{.ranks = 3,
                                  .capacity_tokens = 24'000,
                                  .home_threshold_tokens = 256,
                                  .decode_ms = decode_ms};
      const AttendCounts counts =
          attend(trace, options, {.every = 1, .shape = shape}, [](std::size_t) {});
      EXPECT_EQ(counts.wrong, 0) << counts.first_wrong;
      const std::int64_t rows = counts.batches * shape.layers * shape.kv_heads;
      if (decode_ms == 0) {
        EXPECT_EQ(counts.batches, counts.served.requests);  // one after another
        EXPECT_EQ(counts.rows, rows);
      } else {
        EXPECT_GT(counts.rows, rows);
      }
      EXPECT_GT(counts.max_error, 0);
      EXPECT_LT(counts.max_error, 1e-5);
      const ReplayCounts alone = counts_of(trace, options);
      EXPECT_EQ(counts.served.hit_tokens, alone.hit_tokens);
      EXPECT_GT(alone.hit_tokens, 0);
      EXPECT_GT(alone.evictions, 0);
    }
  }
}

TEST(Replay, RefusesShapesThatMakeNoSense) {
  for (const auto& [shape, said] : std::vector<std::pair<AttendShape, std::string>>{
           {{.layers = 0}, "--layers 0"},
           {{.q_heads = 1 << 20}, "--q-heads 1048576"},
           {{.q_heads = 4, .kv_heads = -4}, "--kv-heads -4"},
           {{.q_heads = 4, .kv_heads = 3}, "--q-heads 4 are no multiple of --kv-heads 3"},
           {{.dim = 0}, "--dim 0"},
           {{.queries = 0}, "--queries 0"}}) {
    try {
      attend({}, {.capacity_tokens = 1024}, {.every = 1, .shape = shape}, [](std::size_t) {});
      ADD_FAILURE() << said << ": taken";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find(said), std::string::npos) << error.what();
    }
  }
  for (const DeviceKind device : {DeviceKind::kCpu, DeviceKind::kCuda})
    EXPECT_NO_THROW(check(default_shape(device)));
}

TEST(Replay, ShapesAreDescribed) {
  EXPECT_EQ(describe(AttendShape{}), "1 layer of 2 query heads and 1 kv head of dim 16 in float32");
  EXPECT_EQ(default_shape(DeviceKind::kCuda).token_bytes(), 2 * 8 * 128 * 2);
  EXPECT_EQ((AttendShape{.layers = 3, .dtype = Dtype::kFloat8E4M3}).token_bytes(), 3 * 2 * 16);
}

// The queries that a GPU's tensor cores are checked with, on the CPU.
TEST(Replay, QueriesThatSeekAKeyFindIt) {
  const AttendShape shape{.q_heads = 4, .kv_heads = 2, .dim = 64, .dtype = Dtype::kBFloat16};
  const Trace trace = short_requests();
  const ReplayOptions options{.ranks = 2, .capacity_tokens = 24'000};
  const Contents contents(shape, query_scale({.o = 0x1p-7}, shape.dim));
  ASSERT_GT(contents.query_scale(), 1);
  run_on_threads(options.ranks,
                 [&](Mesh& mesh) {
                   AttendingCache cache(mesh, trace, options, shape, contents, 1);
                   Replay(trace, options, cache).run([](std::size_t) {});
                   EXPECT_GT(cache.findings().rows(), 20);
                   EXPECT_TRUE(cache.findings().good()) << cache.findings().messages().front();
                 },
                 {.threads = 1});
}

/// The output over a sequence's keys and values, in float64.
std::vector<float> output_of(const Contents& contents, const AttendShape& shape,
                             const std::vector<TokenRow>& tokens, std::size_t query) {
  std::vector<double> sum(static_cast<std::size_t>(shape.dim));
  double weights = 0;
  for (const TokenRow token : tokens) {
    const std::span<const float> k = contents.stored(contents.key_row(token, 0, 0)),
                                 v = contents.stored(contents.value_row(token, 0, 0)),
                                 q = contents.query(query);
    const double dot = std::inner_product(k.begin(), k.end(), q.begin(), 0.0);
    const double weight = std::exp(dot / std::sqrt(shape.dim));
    weights += weight;
    for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += weight * v[d];
  }
  std::vector<float> o;
  for (const double d : sum) o.push_back(static_cast<float>(d / weights));
  return o;
}

// One value of thousands is wrong: the check of either tolerance notices.
TEST(RowCheck, NoticesASingleWrongValue) {
  for (const auto& [dtype, tolerance] :
       {std::pair(Dtype::kFloat32, verify::kTolerance), std::pair(Dtype::kBFloat16, 0x1p-7)}) {
    const AttendShape shape{.q_heads = 1, .kv_heads = 1, .dim = 128, .dtype = dtype};
    const Contents contents(shape, query_scale({.o = tolerance}, shape.dim));
    std::vector<TokenRow> tokens;
    for (int i = 0; i < 4000; ++i) tokens.push_back(TokenRow((i * 37 + 5) % Contents::kRows));
    const std::size_t query = contents.key_row(tokens[1234], 0, 0);
    const auto failures = [&](const std::vector<float>& o) {
      RowCheck check(contents, shape, {.o = tolerance});
      check.compare({.tokens = tokens, .query = query, .o = o}, [] { return "here"; });
      EXPECT_EQ(check.findings().rows(), 1);
      if (!check.findings().good()) {
        EXPECT_EQ(check.findings().messages()[0].find("here, layer 0, head 0, o["), 0u);
      }
      return check.findings().failed();
    };
    EXPECT_EQ(failures(output_of(contents, shape, tokens, query)), 0);
    std::vector<TokenRow> others = tokens;
    others[1234] = others[1233];
    EXPECT_GT(failures(output_of(contents, shape, others, query)), shape.dim / 2);
    EXPECT_EQ(failures(std::vector<float>(128, std::nanf(""))), 128);
  }
}

TEST(Contents, FollowFromTheRequestAlone) {
  const AttendShape shape{.kv_heads = 2, .dtype = Dtype::kFloat16};
  const Contents contents(shape, 1);
  Trace trace{"", {{0, 600, 9, {3, 4}}, {1, 700, 0, {3, 5}}}};
  const auto all = contents.tokens_of(trace, {{}, 0, 0, 609});
  ASSERT_EQ(all.size(), 609u);
  const auto part = contents.tokens_of(trace, {{}, 0, 590, 15});  // of prompt and answer
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 590));
  const auto other = contents.tokens_of(trace, {{}, 1, 0, 700});
  EXPECT_TRUE(std::equal(all.begin(), all.begin() + 512, other.begin()));
  EXPECT_FALSE(std::equal(all.begin() + 512, all.begin() + 600, other.begin() + 512));
  std::vector<std::byte> k, v;
  contents.add_keys(all[0], 0, k);
  contents.add_values(all[0], 0, v);
  EXPECT_EQ(k.size(), 2u * 16 * 2);  // heads, dim, bytes
  EXPECT_EQ(v.size(), k.size());
  EXPECT_NE(k, v);
  std::vector<std::byte> next;
  contents.add_keys(all[0], 1, next);
  EXPECT_NE(next, k) << "layers differ";
}

}  // namespace
}  // namespace kvmesh::replay
