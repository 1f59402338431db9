#include "launch/engine/linear.hpp"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "kvmesh/error.hpp"
#include "launch/engine/linear_kernels.hpp"
#include "tests/launch/tiny_gguf.hpp"
#include "tests/support/instruction_sets.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::engine {
namespace {

const std::vector<WeightType> kEncodable{WeightType::kF32, WeightType::kF16, WeightType::kQ4_0,
                                         WeightType::kQ4_1, WeightType::kQ8_0};

/// Types that are multiplied by way of dequantize(), and the offsets of the scales in their blocks.
const std::map<WeightType, std::vector<std::size_t>> kDecoded{{WeightType::kQ5_0, {0}},
                                                              {WeightType::kQ5_1, {0, 2}},
                                                              {WeightType::kQ4K, {0, 2}},
                                                              {WeightType::kQ5K, {0, 2}},
                                                              {WeightType::kQ6K, {208}}};

/// A matrix that owns its bytes, 8-byte aligned as in a file.
class OwnedMatrix {
 public:
  OwnedMatrix(WeightType type, std::int64_t rows, std::int64_t cols, test::Random& random) {
    const BlockLayout layout = block_layout(type).value();
    std::string bytes = kDecoded.contains(type)
                            ? random_blocks(type, rows * cols / layout.elements, random)
                            : test::encode_weights(type, random.reals(rows * cols));
    storage_.resize(bytes.size() / 8 + 1);
    std::memcpy(storage_.data(), bytes.data(), bytes.size());
    view = {type, rows, cols, cols / layout.elements * layout.bytes,
            reinterpret_cast<const std::byte*>(storage_.data())};
  }
  Matrix view;

 private:
  static std::string random_blocks(WeightType type, std::int64_t blocks, test::Random& random) {
    std::string bytes;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::size_t begin = bytes.size();
      for (std::int64_t byte = 0; byte < block_layout(type)->bytes; ++byte) {
        bytes += static_cast<char>(random.integer(0, 255));
      }
      // 2^-14
      for (std::size_t at : kDecoded.at(type)) bytes.replace(begin + at, 2, "\0\x04", 2);
    }
    return bytes;
  }
  std::vector<std::uint64_t> storage_;
};

std::vector<float> poisoned(std::int64_t count) {
  return std::vector<float>(static_cast<std::size_t>(count),
                            std::numeric_limits<float>::quiet_NaN());
}

/// All rows of `w` times x, computed in one call.
std::vector<float> product(const Matrix& w, const std::vector<float>& x, std::int64_t tokens,
                           int threads) {
  std::vector<float> y = poisoned(tokens * w.rows);
  ThreadPool pool(threads);
  const Product one{&w, {0, w.rows}, y.data(), w.rows};
  multiply({&one, 1}, x, tokens, pool);
  return y;
}

/// |y - exact| must stay below the rounding of a float32 sum of cols terms, whose error relative to
/// the sum of magnitudes is cols / lanes + log(lanes) roundings at most; 64 is far above for 320.
void expect_close_to_float64(const Matrix& w, const std::vector<float>& x,
                             const std::vector<float>& y, std::int64_t tokens) {
  std::vector<float> row(static_cast<std::size_t>(w.cols));
  for (std::int64_t r = 0; r < w.rows; ++r) {
    dequantize(w.type, w.row(r), row);
    for (std::int64_t t = 0; t < tokens; ++t) {
      double exact = 0.0;
      double magnitude = 0.0;
      for (std::int64_t c = 0; c < w.cols; ++c) {
        const double term = static_cast<double>(row[static_cast<std::size_t>(c)]) *
                            static_cast<double>(x[static_cast<std::size_t>(t * w.cols + c)]);
        exact += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(y[static_cast<std::size_t>(t * w.rows + r)], exact, 64 * 0x1p-24 * magnitude)
          << block_layout(w.type)->name << " row " << r << " token " << t;
    }
  }
}

class LinearOn : public test::OnInstructionSet {};

INSTANTIATE_TEST_SUITE_P(EveryTarget, LinearOn, testing::ValuesIn(test::instruction_sets()),
                         test::instruction_set_name);

TEST_P(LinearOn, AgreesWithFloat64ForEveryTypeAndBatch) {
  const std::uint64_t seed = test::seed_or(22);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  std::vector<WeightType> types = kEncodable;
  for (const auto& [type, scales] : kDecoded) types.push_back(type);
  for (WeightType type : types) {
    const std::int64_t cols = block_layout(type)->elements == 256 ? 256 : 320;
    const OwnedMatrix w(type, 23, cols, random);
    for (std::int64_t tokens : {1, 2, 3, 4, 5, 9}) {
      const std::vector<float> x = random.reals(tokens * cols);
      expect_close_to_float64(w.view, x, product(w.view, x, tokens, 2), tokens);
    }
  }
}

TEST_P(LinearOn, BitsDoNotDependOnRowsThreadsOrBatch) {
  const std::uint64_t seed = test::seed_or(23);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kCols = 96;
  constexpr std::int64_t kTokens = 11;
  for (WeightType type : kEncodable) {
    const OwnedMatrix w(type, kRows, kCols, random);
    const std::vector<float> x = random.reals(kTokens * kCols);
    const std::vector<float> all = product(w.view, x, kTokens, 1);
    EXPECT_EQ(product(w.view, x, kTokens, 3), all);
    for (int round = 0; round < 30; ++round) {
      const std::int64_t first = random.integer(0, kTokens - 1);
      const std::int64_t tokens = random.integer(1, kTokens - first);
      const IndexRange rows{random.integer(0, kRows / 2), random.integer(kRows / 2, kRows)};
      std::vector<float> part = poisoned(tokens * rows.size());
      ThreadPool pool(static_cast<int>(random.integer(1, 2)));
      const Product one{&w.view, rows, part.data(), rows.size()};
      multiply({&one, 1}, std::span(x).subspan(first * kCols, tokens * kCols), tokens, pool);
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t r = 0; r < rows.size(); ++r) {
          ASSERT_EQ(part[static_cast<std::size_t>(t * rows.size() + r)],
                    all[static_cast<std::size_t>((first + t) * kRows + rows.begin + r)])
              << block_layout(type)->name << " row " << rows.begin + r << " of " << rows.begin
              << ".." << rows.end << ", token " << first + t << " of " << tokens;
        }
      }
    }
  }
}

TEST(Linear, SeveralProductsShareOneLoopAndTouchOnlyTheirRows) {
  test::Random random(24);
  const OwnedMatrix a(WeightType::kQ4_1, 10, 64, random);
  const OwnedMatrix b(WeightType::kQ8_0, 7, 64, random);
  const std::vector<float> x = random.reals(2 * 64);
  constexpr std::int64_t kStride = 14;  // 5 of a, 7 of b, 2 that are never written
  std::vector<float> y = poisoned(2 * kStride);
  ThreadPool pool(2);
  const std::vector<Product> products{{&a.view, {3, 8}, y.data(), kStride},
                                      {&b.view, {0, 7}, y.data() + 5, kStride},
                                      {&b.view, {4, 4}, y.data() + 12, kStride}};
  multiply(products, x, 2, pool);
  const std::vector<float> all_a = product(a.view, x, 2, 1);
  const std::vector<float> all_b = product(b.view, x, 2, 1);
  for (std::size_t t = 0; t < 2; ++t) {
    for (std::size_t r = 0; r < 5; ++r) EXPECT_EQ(y[t * kStride + r], all_a[t * 10 + 3 + r]);
    for (std::size_t r = 0; r < 7; ++r) EXPECT_EQ(y[t * kStride + 5 + r], all_b[t * 7 + r]);
    for (std::size_t r = 12; r < kStride; ++r) EXPECT_TRUE(std::isnan(y[t * kStride + r]));
  }
}

TEST(Linear, RejectsInvalidShapes) {
  test::Random random(25);
  const OwnedMatrix w(WeightType::kF32, 4, 32, random);
  std::vector<float> y = poisoned(4);
  const std::vector<float> x(32);
  ThreadPool pool(1);
  const auto attempt = [&](IndexRange rows, std::int64_t tokens, std::int64_t stride) {
    const Product one{&w.view, rows, y.data(), stride};
    multiply({&one, 1}, x, tokens, pool);
  };
  EXPECT_THROW(attempt({0, 5}, 1, 5), InvalidArgument);
  EXPECT_THROW(attempt({-1, 3}, 1, 4), InvalidArgument);
  EXPECT_THROW(attempt({0, 4}, 2, 4), InvalidArgument);
  EXPECT_THROW(attempt({0, 4}, 1, 3), InvalidArgument);
  EXPECT_TRUE(std::isnan(y[0]));
  attempt({0, 4}, 1, 4);
  EXPECT_FALSE(std::isnan(y[0]));
}

TEST_P(LinearOn, SiluMatchesFloat64AtAnyPlaceInTheArray) {
  test::Random random(26);
  const std::vector<float> gate = random.reals(53, 12.0f);
  const std::vector<float> up = random.reals(53, 3.0f);
  std::vector<float> all = poisoned(53);
  silu_times(gate.data(), up.data(), all.data(), 53);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const double g = gate[i];
    const double exact = g / (1.0 + std::exp(-g)) * static_cast<double>(up[i]);
    EXPECT_NEAR(all[i], exact, 1e-6 * std::abs(exact) + 1e-30) << i;
    float alone = std::nanf("");
    silu_times(&gate[i], &up[i], &alone, 1);
    EXPECT_EQ(alone, all[i]) << i;
  }
  const float low = -200.0f;
  float out = std::nanf("");
  silu_times(&low, &up[0], &out, 1);
  EXPECT_NEAR(out, 0.0f, 1e-30);  // though exp(200) overflows
  EXPECT_FALSE(std::isnan(out));
}

}  // namespace
}  // namespace kvmesh::engine
