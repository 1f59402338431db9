// Tests the checker itself: it must find wrong numbers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>

#include "core/numbers/half.hpp"
#include "launch/verify/checked_cache.hpp"
#include "launch/verify/random_case.hpp"
#include "launch/verify/random_config.hpp"
#include "runtime/memory/layer_groups.hpp"
#include "tests/contracts/on_each_placement.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

using verify::Findings;
using verify::HostTensor;

bool accepts(double got, double want, const verify::Bound& bound) {
  Findings findings;
  findings.compare(got, want, bound, [] { return "number"; });
  return findings.good();
}

bool accepts(double got, double want, Dtype dtype = Dtype::kFloat32) {
  return accepts(got, want, {.dtype = dtype});
}

TEST(VerifyFindings, AcceptRoundingOnly) {
  EXPECT_TRUE(accepts(0.5 + 0.9e-5, 0.5));
  EXPECT_FALSE(accepts(0.5 + 1.1e-5, 0.5));
  EXPECT_FALSE(accepts(-0.5, 0.5));
  EXPECT_TRUE(accepts(0.5 + 0x1p-12, 0.5, Dtype::kFloat16));
  EXPECT_FALSE(accepts(0.5 + 0x1p-10, 0.5, Dtype::kFloat16));
  EXPECT_TRUE(accepts(0.5 + 0x1p-9, 0.5, Dtype::kBFloat16));
  EXPECT_FALSE(accepts(0.5 + 0x1p-7, 0.5, Dtype::kBFloat16));
}

TEST(VerifyFindings, AcceptNoNanAndOnlyEqualInfinities) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  EXPECT_TRUE(accepts(-infinity, -infinity));
  EXPECT_FALSE(accepts(infinity, -infinity));
  for (double number : {0.0, 1e30, nan}) {
    EXPECT_FALSE(accepts(number, -infinity));
    EXPECT_FALSE(accepts(-infinity, number));
    EXPECT_FALSE(accepts(nan, number));
  }
}

TEST(VerifyFindings, KeepTheFirstMessages) {
  Findings findings;
  for (int i = 0; i < 10; ++i) findings.fail("message " + std::to_string(i));
  EXPECT_EQ(findings.failed(), 10);
  ASSERT_FALSE(findings.messages().empty());
  EXPECT_EQ(findings.messages().front(), "message 0");
}

// One query over a long sequence, its tokens stored as `dtype`.
class LongRow {
 public:
  LongRow(Dtype dtype, Random& random) : dtype_(dtype), sequence_{1, kDim, 1, {}, {}} {
    const auto stored = [&] { return verify::rounded_to(dtype, random.real()); };
    for (std::int64_t i = 0; i < kTokens * kDim; ++i) sequence_.k.push_back(stored());
    for (std::int64_t i = 0; i < kTokens; ++i) sequence_.v.push_back(stored());
    query_ = random.reals(kDim);
  }

  // The query in the pool's type, too.
  void round_query() {
    for (float& q : query_) q = verify::rounded_to(dtype_, q);
  }
  double lse(const ScoreMod& score, const MaskMod& mask = mods::no_mask()) const {
    return verify::reference_row(sequence_, query_.data(), 1 / std::sqrt(double{kDim}), mask, score,
                                 0, 0, 1, kTokens - 1)
        .lse;
  }

  static constexpr std::int32_t kTokens = 10'000, kDim = 64;

 private:
  Dtype dtype_;
  verify::DenseSequence sequence_;
  std::vector<float> query_;
};

// A page's part of the LSE of 10 000 tokens is some 0.0016: far less than the effect of rounded
// weights on O, far more than the error of float32 in the LSE.
TEST(VerifyFindings, DetectAPageLostOrTakenTwice) {
  const std::uint64_t seed = seed_or(29);
  SCOPED_TRACE(seed_trace(seed));
  Random random(seed);
  const MaskMod but_one_page([](auto, auto, auto, auto kv) { return kv / 16 != 333; });
  const Device gpu{DeviceKind::kCuda, 0};
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    LongRow row(dtype, random);
    const LongRow given = row;
    row.round_query();
    for (const ScoreMod& score : {ScoreMod(), mods::soft_cap(2.0f)}) {
      const double whole = given.lse(score), lost = given.lse(score, but_one_page);
      const double twice = whole + std::log(2 - std::exp(lost - whole));
      const double rounded = row.lse(score), spread = std::abs(rounded - whole);
      for (Device device : {Device{}, gpu}) {
        SCOPED_TRACE(std::string(name(dtype)) + " on " +
                     (device.kind == DeviceKind::kCpu ? "a CPU" : "a GPU"));
        const double tolerance = verify::arithmetic_tolerances(device, dtype).lse;
        const bool rounds =
            verify::rounded_query_type(device, dtype, Dtype::kFloat32) != Dtype::kFloat32;
        const verify::Bound bound{.tolerance = tolerance, .spread = rounds ? spread : 0};
        EXPECT_TRUE(accepts(static_cast<float>(whole), whole, bound));
        if (rounds) {
          EXPECT_TRUE(accepts(static_cast<float>(rounded), whole, bound));
        }
        EXPECT_FALSE(accepts(lost, whole, bound)) << whole - lost;
        EXPECT_FALSE(accepts(twice, whole, bound)) << twice - whole;
      }
    }
  }
}

TEST(VerifyHostTensor, RoundsAsTheLibrary) {
  Random random(seed_or(5));
  HostTensor f16(Dtype::kFloat16, 1, 1, 2), bf16(Dtype::kBFloat16, 1, 1, 2);
  for (int i = 0; i < 20'000; ++i) {
    // Exponents from deep in float16's subnormals to near its largest number.
    const float value = std::ldexp(random.real(), static_cast<int>(random.integer(-26, 15)));
    f16.set(0, 0, 1, value);
    bf16.set(0, 0, 1, value);
    ASSERT_EQ(f16.get(0, 0, 1), float16_to_float(float_to_float16(value))) << value;
    ASSERT_EQ(bf16.get(0, 0, 1), bfloat16_to_float(float_to_bfloat16(value))) << value;
    ASSERT_TRUE(std::isnan(f16.get(0, 0, 0)));
  }
}

TEST(VerifyHostTensor, DetectsWritesBetweenRows) {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    HostTensor tensor(dtype, 2, 3, 4);
    tensor.set(1, 2, 3, 1.0f);
    EXPECT_TRUE(tensor.gaps_untouched());
    tensor.set(0, 1, 4, 1.0f);
    EXPECT_FALSE(tensor.gaps_untouched());
  }
}

TEST(VerifyCheckedCache, DetectsOneWrongNumberInAPage) {
  for (int ranks : {1, 3}) {
    std::atomic<std::int64_t> failed = 0;
    run_on_threads(ranks, [&](Mesh& mesh) {
      CheckedCache cache(mesh, small_cache(kSmallShape), 7);
      const SequenceId sequence = prompt(cache, 40);
      EXPECT_TRUE(cache.findings().good());
      const PageId page = cache.allocator().pages(sequence)[5];
      if (page.rank() == mesh.page_rank()) {
        const TensorView v = cache.cache().pool(1).v;
        static_cast<float*>(v.data)[page.index() * v.stride(0)] += 4.0f;
      }
      EXPECT_TRUE(cache.step({{sequence, 1}}));
      failed += cache.findings().failed();
    });
    EXPECT_GT(failed, 0) << ranks << " ranks";
  }
}

// Page tables and token lists in place of the cache's plans: a wrong number is found where a list
// has its position, and only there.
TEST(VerifyCheckedCache, DetectsAWrongNumberByPageTables) {
  for (int ranks : {1, 3}) {
    std::atomic<std::int64_t> failed = 0, failed_elsewhere = 0;
    run_on_threads(ranks, [&](Mesh& mesh) {
      CheckedCache cache(mesh, small_cache(kSmallShape), 7);
      const SequenceId sequence = prompt(cache, 40);
      const PageId page = cache.allocator().pages(sequence)[5];
      if (page.rank() == mesh.page_rank()) {
        const TensorView v = cache.cache().pool(1).v;
        static_cast<float*>(v.data)[page.index() * v.stride(0)] += 4.0f;
      }
      const auto position = static_cast<std::int32_t>(5 * kSmallShape.page_size);
      EXPECT_TRUE(
          cache.step({{sequence, 1}}, {.external = true, .lists = {{-1, position + 1, 2, 2}, 4}}));
      failed_elsewhere += cache.findings().failed();
      EXPECT_TRUE(cache.step({{sequence, 1}}, {.external = true, .lists = {{1, position}, 2}}));
      const std::int64_t by_list = cache.findings().failed();
      EXPECT_TRUE(cache.step({{sequence, 1}}, {.external = true}));
      failed += by_list > 0 && cache.findings().failed() > by_list;
    });
    EXPECT_EQ(failed_elsewhere, 0) << ranks << " ranks";
    EXPECT_GT(failed, 0) << ranks << " ranks";
  }
}

TEST(VerifyCheckedCache, KeepsFreePagesFullOfNan) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  CheckedCache cache(mesh, small_cache(kSmallShape), 7);
  const SequenceId sequence = prompt(cache, 40);
  const PageId page = cache.allocator().pages(sequence)[5];
  const TensorView k = cache.cache().pool(0).k;
  const float& number = static_cast<float*>(k.data)[page.index() * k.stride(0)];
  EXPECT_FALSE(std::isnan(number));
  cache.truncate(sequence, 20);
  EXPECT_TRUE(std::isnan(number));
}

// As an engine plans a captured graph over its own pages: with room for more than the batch has.
TEST(VerifyCheckedCache, PlansPageTablesWithLimits) {
  for (int ranks : {1, 3}) {
    run_on_threads(ranks, [](Mesh& mesh) {
      CheckedCache cache(mesh, small_cache(kSmallShape), 7);
      const SequenceId sequence = prompt(cache, 40);
      const StepLimits limits{.sequences = 3, .query_tokens = 4};
      EXPECT_TRUE(cache.step({{sequence, 2}}, {.plan = {.limits = limits}, .external = true}));
      EXPECT_TRUE(
          cache.step({{sequence, 1}},
                     {.plan = {.limits = limits}, .external = true, .lists = {{5, -1, 0}, 3}}));
      EXPECT_TRUE(cache.findings().good());
      if (mesh.size() > 1) return;  // a rank need not have a row of its own
      EXPECT_GT(cache.findings().rows(), 0);
    });
  }
}

// Pages that one rank has free at once are free on several ranks when the moves have ended.
TEST(VerifyCheckedCache, CompletesMovesForCallsThatFindTooFewPages) {
  run_on_threads(2, [](Mesh& mesh) {
    CacheOptions options = small_cache(kSmallShape);
    options.placement = Placement::kPacked;
    CheckedCache cache(mesh, options, 7);
    const SequenceId first = prompt(cache, 40);
    EXPECT_EQ(cache.rebalance_now({.limit = 4}).moving, 4);
    cache.erase(first);
    const std::int64_t all = 2 * options.pages_per_rank;
    EXPECT_LT(cache.allocator().free_pages(), all);
    EXPECT_TRUE(cache.try_reserve(cache.create(), all * options.page_size));
    expect_good(cache);
  });
}

TEST(VerifyConfig, DrawsHeadsAndDimsOfALayerGroup) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  Random random(seed_or(3));
  int with_q_heads = 0, with_v_dim = 0;
  for (int i = 0; i < 500; ++i) {
    const verify::CaseConfig config = verify::random_config(random, mesh);
    if (config.cache.groups.empty()) continue;
    const KvCache cache(mesh, config.cache);
    const CacheOptions& group = cache.group_options(1);
    with_q_heads += group.state_bytes == 0 && group.q_heads != config.cache.q_heads;
    with_v_dim += group.state_bytes == 0 && group.v_dim != group.k_dim;
    if (group.state_bytes > 0) continue;
    const std::string heads = fmt::format("the other one {}/{} heads, dims {}/{},", group.q_heads,
                                          group.kv_heads, group.k_dim, group.v_dim);
    EXPECT_NE(verify::describe(config, mesh).find(heads), std::string::npos) << heads;
  }
  EXPECT_GT(with_q_heads, 0);
  EXPECT_GT(with_v_dim, 0);
}

TEST(VerifyConfig, MakesCachesReproducibleThatGpusTake) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  Random random(seed_or(4));
  int with_large_values = 0;
  for (int i = 0; i < 2000; ++i) {
    verify::CaseConfig config = verify::random_config(random, mesh);
    verify::make_reproducible(config, {DeviceKind::kCuda, 0});
    EXPECT_NO_THROW(check_reproducible_on_gpu(config.cache)) << verify::describe(config, mesh);
    with_large_values += config.cache.v_dim == 512;
  }
  EXPECT_GT(with_large_values, 0);
}

TEST(VerifyCase, TakesTheKindOfScales) {
  run_on_threads(4, [](Mesh& mesh) {
    for (const ScaleKind kind :
         {ScaleKind::kPerHead, ScaleKind::kPerTensor, ScaleKind::kPerTokenAndHead}) {
      verify::CaseRunner runner(mesh, {.kv_scales = kind});
      for (std::uint64_t seed = 1; seed <= 12; ++seed) {
        const verify::CaseResult result = runner.run(seed);
        EXPECT_TRUE(result.findings.good()) << seed;
        const std::string pages = "float8_e4m3 scaled " + std::string(name(kind)) + ",";
        EXPECT_NE(result.description.find(pages), std::string::npos) << result.description;
      }
    }
  });
}

/// Whether rows may have other bits in another run.
bool moves_beside_steps(const verify::CaseResult& result) {
  return result.description.find("pages move beside steps") != std::string::npos;
}

TEST(VerifyCase, IsTheSameForTheSameSeed) {
  run_on_threads(2, [](Mesh& mesh) {
    verify::CaseRunner first(mesh), second(mesh);
    int compared = 0;
    for (std::uint64_t seed = 1; seed <= 9; ++seed) {
      const verify::CaseResult a = first.run(seed), b = second.run(seed);
      EXPECT_EQ(a.description, b.description);
      EXPECT_EQ(a.steps, b.steps);
      if (moves_beside_steps(a)) continue;
      ++compared;
      EXPECT_EQ(a.findings.rows(), b.findings.rows());
      EXPECT_EQ(a.findings.max_error(), b.findings.max_error());
      EXPECT_EQ(a.moved.all, b.moved.all);
    }
    EXPECT_GE(compared, 3);
  });
}

TEST(VerifyCase, MovesPagesBetweenAndBesideSteps) {
  run_on_threads(3, [](Mesh& mesh) {
    verify::CaseRunner runner(mesh);
    verify::MovedPages between, beside;
    std::int64_t rows = 0;
    for (std::uint64_t seed = 1; seed <= 60; ++seed) {
      const verify::CaseResult result = runner.run(seed);
      for (const std::string& message : result.findings.messages())
        ADD_FAILURE() << "seed " << seed << ", " << result.description << ": " << message;
      if (result.moved.all == 0) continue;
      rows += result.findings.rows();
      verify::MovedPages& sum = moves_beside_steps(result) ? beside : between;
      sum.all += result.moved.all;
      sum.with_leaving += result.moved.with_leaving;
    }
    EXPECT_GT(rows, 0);
    for (const verify::MovedPages& moved : {between, beside}) {
      EXPECT_GT(moved.with_leaving, 0);
      EXPECT_GT(moved.all, moved.with_leaving);
    }
  });
}

TEST(VerifyCase, MovesNothingOnOneRank) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  verify::CaseRunner runner(mesh);
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    const verify::CaseResult result = runner.run(seed);
    EXPECT_EQ(result.description.find("pages move"), std::string::npos);
    EXPECT_EQ(result.moved.all, 0);
  }
}

}  // namespace
}  // namespace kvmesh::test
