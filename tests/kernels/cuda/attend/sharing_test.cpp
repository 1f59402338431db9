// Where sharing a prefix pays, as measured on an H200 with 64 query heads of 8 kv heads of 128 dims
// in bfloat16.
#include "kernels/cuda/attend/sharing.hpp"

#include <gtest/gtest.h>

namespace kvmesh::cuda {
namespace {

constexpr AttentionShape kShape{
    .q_heads = 64, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .page_size = 16};

bool pays(const AttentionShape& shape, std::int64_t sequences, std::int64_t tokens,
          bool latent = false) {
  const SharedPrefix prefix{
      .pages = tokens / shape.page_size,
      .sequences = std::vector<std::int32_t>(static_cast<std::size_t>(sequences))};
  return sharing_rules(shape, Dtype::kBFloat16, latent).pays(prefix);
}

TEST(Sharing, PaysWhereItWasFaster) {
  EXPECT_TRUE(pays(kShape, 4, 8192));
  EXPECT_TRUE(pays(kShape, 8, 8192));
  EXPECT_TRUE(pays(kShape, 32, 8192));
  EXPECT_TRUE(pays(kShape, 16, 4096));
  EXPECT_TRUE(pays(kShape, 32, 2048));
  EXPECT_FALSE(pays(kShape, 2, 8192));
  EXPECT_FALSE(pays(kShape, 4, 2048));
  EXPECT_FALSE(pays(kShape, 16, 2048));
  EXPECT_FALSE(pays(kShape, 8, 1024));
  EXPECT_FALSE(pays(kShape, 32, 1024));
}

// A rank with one of eight heads saves an eighth of the bytes.
TEST(Sharing, CountsTheHeadsOfTheRank) {
  AttentionShape one = kShape;
  one.q_heads = 8;
  one.kv_heads = 1;
  EXPECT_FALSE(pays(one, 8, 8192));
  EXPECT_TRUE(pays(one, 32, 8192));
}

TEST(Sharing, OfLatentPagesSavesLess) {
  const AttentionShape shape{
      .q_heads = 16, .kv_heads = 1, .k_dim = 576, .v_dim = 512, .page_size = 64};
  EXPECT_FALSE(pays(shape, 32, 8192, true));
  EXPECT_TRUE(pays(shape, 256, 8192, true));
}

TEST(Sharing, ReadsFewOwnTokensInTheSameLaunch) {
  EXPECT_GE(most_own_tokens(kShape, Dtype::kBFloat16, false), 8 * 256);
  EXPECT_LT(most_own_tokens(kShape, Dtype::kBFloat16, false), 16 * 256);
  EXPECT_EQ(most_own_tokens(kShape, Dtype::kFloat8E4M3, false), 0);
}

// A multiprocessor of an H200 reads 60 GB/s, and computes 5.8 TFLOP/s, 3.5 over float8 pages.
TEST(Sharing, WeighsOwnTokensByTheTimeOfTheirBytes) {
  const auto rows = [](double bytes, double operations, double rate) {
    return bytes / 60e9 * rate / operations;
  };
  EXPECT_NEAR(rows_of_own_token(Dtype::kBFloat16, false), rows(512, 2 * 256, 5.8e12), 10);
  EXPECT_NEAR(rows_of_own_token(Dtype::kFloat8E4M3, false), rows(256, 2 * 256, 3.5e12), 4);
  EXPECT_NEAR(rows_of_own_token(Dtype::kBFloat16, true), rows(1152, 2 * (576 + 512), 5.8e12), 6);
}

TEST(Sharing, FollowsACallersNumber) {
  const SharedPrefixRules rules = sharing_rules(kShape, Dtype::kBFloat16, false).with(32);
  EXPECT_TRUE(rules.pays({.pages = 2, .sequences = {0, 1}}));
  EXPECT_FALSE(rules.pays({.pages = 1, .sequences = {0, 1}}));
}

}  // namespace
}  // namespace kvmesh::cuda
