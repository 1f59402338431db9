// The checker is checked: it must find what is wrong.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>

#include "core/half.hpp"
#include "launch/verify/checked_cache.hpp"
#include "launch/verify/random_case.hpp"
#include "tests/contracts/on_each_placement.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

using verify::Findings;
using verify::HostTensor;

bool accepts(double got, double want, Dtype dtype = Dtype::kFloat32) {
  Findings findings;
  findings.compare(got, want, dtype, [] { return "number"; });
  return findings.good();
}

TEST(VerifyFindings, AcceptRoundingAndNoMore) {
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

TEST(VerifyHostTensor, RoundsAsTheLibraryDoes) {
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

TEST(VerifyHostTensor, NoticesWritesBetweenItsRows) {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    HostTensor tensor(dtype, 2, 3, 4);
    tensor.set(1, 2, 3, 1.0f);
    EXPECT_TRUE(tensor.gaps_untouched());
    tensor.set(0, 1, 4, 1.0f);
    EXPECT_FALSE(tensor.gaps_untouched());
  }
}

TEST(VerifyCheckedCache, NoticesOneWrongNumberInAPage) {
  for (int ranks : {1, 3}) {
    std::atomic<std::int64_t> failed = 0;
    run_on_threads(ranks, [&](Mesh& mesh) {
      CheckedCache cache(mesh, small_cache(kSmallShape), 7);
      const SequenceId sequence = prompt(cache, 40);
      EXPECT_TRUE(cache.findings().good());
      const PageId page = cache.allocator().pages(sequence)[5];
      if (page.rank() == mesh.kv_rank()) {
        const TensorView v = cache.cache().pool(1).v;
        static_cast<float*>(v.data)[page.index() * v.stride(0)] += 4.0f;
      }
      EXPECT_TRUE(cache.step({{sequence, 1}}));
      failed += cache.findings().failed();
    });
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

TEST(VerifyCase, IsTheSameForTheSameSeed) {
  run_on_threads(2, [](Mesh& mesh) {
    verify::CaseRunner first(mesh), second(mesh);
    for (std::uint64_t seed : {1u, 2u, 3u}) {
      const verify::CaseResult a = first.run(seed), b = second.run(seed);
      EXPECT_EQ(a.description, b.description);
      EXPECT_EQ(a.steps, b.steps);
      EXPECT_EQ(a.findings.rows(), b.findings.rows());
      EXPECT_EQ(a.findings.max_error(), b.findings.max_error());
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
