// Strided queries, pools and outputs.
#include <fmt/format.h>

#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

struct Pattern {
  const char* name;
  Layout rows;  // of [tokens, heads, dim]
  Layout pool;  // of [pages, heads, page_size, dim]
};

const Pattern kPatterns[] = {
    {"Contiguous", {}, {}},
    // [H, S, D], and a cache that is one flat sequence for each head.
    {"HeadsOutside", {.order = {1, 0, 2}}, {.order = {1, 0, 2, 3}}},
    // Rows inside a wider buffer, and pages with the heads of a token together.
    {"Gaps", {.gap = 3}, {.order = {0, 2, 1, 3}, .gap = 5}},
    // One query for all tokens (outputs cannot share), pages innermost.
    {"Broadcast", {.broadcast = {0}}, {.order = {2, 1, 0, 3}}},
};

class AttendLayout : public testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(AttendLayout, MatchesFloat64) {
  const auto [q, pool, out] = GetParam();
  for (Dtype dtype : kDtypes) {
    for (int dim : {32, 20}) {
      CaseSpec spec{.shape = {4, 2, dim, dim, 8}, .dtype = dtype};
      spec.sequences = {{.q_len = 4, .kv_len = 77}, {.q_len = 1, .kv_len = 33}};
      spec.options.mask = mods::causal();
      spec.q = kPatterns[q].rows;
      spec.pool = kPatterns[pool].pool;
      spec.o = spec.lse = kPatterns[out].rows;
      if (out == 1) spec.lse.order = {1, 0};  // the LSE has no contiguous dimension to keep
      AttentionCase c(spec);
      EXPECT_TRUE(c.matches(c.run())) << name(dtype) << " dim " << dim;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendLayout,
                         testing::Combine(testing::Range(0, 4), testing::Range(0, 4),
                                          testing::Range(0, 3)),
                         [](const auto& param) {
                           return fmt::format("Q{}Pool{}Out{}",
                                              kPatterns[std::get<0>(param.param)].name,
                                              kPatterns[std::get<1>(param.param)].name,
                                              kPatterns[std::get<2>(param.param)].name);
                         });

}  // namespace
}  // namespace kvmesh::test
