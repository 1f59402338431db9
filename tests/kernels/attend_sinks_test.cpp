// Attention sinks: a term of each row's denominator.
#include <limits>

#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Decode over keys that are split, speculation, prefill, and rows that see few keys or none.
/// Another rank counts the sinks of one sequence.
CaseSpec many_rows(Dtype dtype, int dim) {
  CaseSpec spec{.shape = {8, 2, dim, dim, 16}, .dtype = dtype, .q_dtype = dtype};
  spec.sequences = {{.q_len = 1, .kv_len = 5000},
                    {.q_len = 3, .kv_len = 450, .counts_sinks = false},
                    {.q_len = 70, .kv_len = 200},
                    {.q_len = 2, .kv_len = 97},
                    {.q_len = 2, .kv_len = 2500, .counts_sinks = false}};
  spec.sinks = {0.0f, 1.5f, -kInfinity, 6.0f, -3.0f, 0.25f, 90.0f, -90.0f};
  return spec;
}

class AttendSinks : public testing::TestWithParam<Dtype> {};

TEST_P(AttendSinks, MatchFloat64) {
  for (int dim : {64, 128, 20}) {
    CaseSpec spec = many_rows(GetParam(), dim);
    AttentionCase all(spec);
    EXPECT_TRUE(all.matches(all.run())) << dim;
    spec.options = {.mask = mods::sliding_window(40), .score = mods::soft_cap(3.0f)};
    AttentionCase window(spec);
    EXPECT_TRUE(window.matches(window.run())) << dim;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendSinks, testing::ValuesIn(kDtypes),
                         [](const auto& param) { return std::string(name(param.param)); });

TEST(AttendSinks, RowWithoutKeysHasTheSinkAsLse) {
  CaseSpec spec = many_rows(Dtype::kFloat16, 64);
  spec.options.mask = [](auto, auto h, auto, auto kv) { return h != 3 && kv > 5000; };
  AttentionCase c(spec);
  const CaseResult result = c.run();
  EXPECT_TRUE(c.matches(result));
  EXPECT_EQ(result.lse.at(0, 3), 6.0f);
  EXPECT_EQ(result.lse.at(0, 2), -kInfinity);
  EXPECT_EQ(result.lse.at(1, 3), -kInfinity);  // not counted here
}

// The other heads of its group have keys, which are split.
TEST(AttendSinks, RowWithoutKeysBesideOthersHasTheSinkAsLse) {
  CaseSpec spec = many_rows(Dtype::kFloat16, 64);
  spec.options.mask = [](auto, auto h, auto, auto) { return h != 7; };
  for (const float sink : {-90.0f, -1e4f, std::numeric_limits<float>::lowest()}) {
    spec.sinks[7] = sink;
    AttentionCase c(spec);
    const CaseResult result = c.run();
    EXPECT_TRUE(c.matches(result)) << sink;
    EXPECT_EQ(result.lse.at(0, 7), sink);
    EXPECT_EQ(result.lse.at(1, 7), -kInfinity);  // not counted here
  }
}

TEST(AttendSinks, NanStaysInItsHead) {
  for (std::int64_t keys : {60, 3000}) {
    CaseSpec spec{.shape = {4, 2, 64, 64, 16}, .dtype = Dtype::kBFloat16};
    spec.sequences = {{.q_len = 2, .kv_len = keys}};
    spec.sinks = {0.5f, std::numeric_limits<float>::quiet_NaN(), 1.0f, -1.0f};
    AttentionCase c(spec);
    const CaseResult result = c.run();
    EXPECT_TRUE(c.matches(result, [](std::int64_t, std::int32_t head) { return head == 1; }));
    EXPECT_TRUE(std::isnan(result.lse.at(1, 1)));
  }
}

}  // namespace
}  // namespace kvmesh::test
