// Sequences whose first pages are the same: these are read once for all of them, with the result of
// reading them for each.
#include <fmt/format.h>

#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

struct Pages {
  AttentionShape shape;
  Dtype dtype;
  bool latent = false;
};

std::string name_of_pages(const testing::TestParamInfo<Pages>& info) {
  const AttentionShape& shape = info.param.shape;
  return fmt::format("H{}Kv{}K{}V{}P{}{}{}", shape.q_heads, shape.kv_heads, shape.k_dim,
                     shape.v_dim, shape.page_size, name(info.param.dtype),
                     info.param.latent ? "latent" : "");
}

CaseSpec spec_of(const Pages& pages) {
  CaseSpec spec{.shape = pages.shape,
                .dtype = pages.dtype,
                .q_dtype = pages.dtype == Dtype::kFloat8E4M3 ? Dtype::kBFloat16 : pages.dtype,
                .latent = pages.latent};
  spec.options.mask = mods::causal();
  return spec;
}

/// Adds a sequence with the first `pages` pages of `of` and `own` tokens of its own.
void add_fork(CaseSpec& spec, std::size_t of, std::int64_t pages, std::int64_t own,
              std::int64_t queries) {
  spec.sequences.push_back({.q_len = queries,
                            .kv_len = pages * spec.shape.page_size + own,
                            .prefix = {.of = of, .pages = pages}});
}

void expect_same(CaseSpec spec, const char* what) {
  AttentionCase c(spec);
  AttentionOptions alone = spec.options;
  alone.shares_prefixes = false;
  const CaseResult shared = c.run(2), each = c.run(alone, 2);
  EXPECT_TRUE(c.matches(shared)) << what;
  EXPECT_TRUE(c.matches(each)) << what << ", not shared";
  EXPECT_LT(4 * shared.tiles.visited, 3 * each.tiles.visited) << what;
}

class AttendPrefixes : public testing::TestWithParam<Pages> {};

// More rows than a task takes; a sequence of whole pages alone, one that shares fewer, one that
// shares none, one of many queries.
TEST_P(AttendPrefixes, MatchFloat64) {
  CaseSpec spec = spec_of(GetParam());
  const std::int64_t page = spec.shape.page_size, pages = (400 + page - 1) / page;
  spec.sequences = {{.q_len = 1, .kv_len = pages * page + 30}};
  for (std::int64_t i = 0; i < 21; ++i) add_fork(spec, 0, pages, 7 * i % 50, 1 + i % 2);
  add_fork(spec, 0, pages / 2, 3, 1);
  spec.sequences.push_back({.q_len = 1, .kv_len = 77});
  add_fork(spec, 0, pages, 100, 25);
  expect_same(spec, "causal");
  spec.options.score = mods::alibi(spec.shape.q_heads);
  for (int h = 0; h < spec.shape.q_heads; ++h) {
    spec.sinks.push_back(static_cast<float>(h % 5 - 1));
  }
  spec.sequences[3].counts_sinks = spec.sequences[5].counts_sinks = false;
  expect_same(spec, "ALiBi and sinks");
}

/// A tree: each sequence continues an earlier one from some page on.
CaseSpec random_tree(const Pages& pages, std::uint64_t seed) {
  Random random(seed);
  CaseSpec spec = spec_of(pages);
  spec.seed = seed;
  const std::int64_t page = spec.shape.page_size;
  spec.sequences = {{.q_len = 1, .kv_len = random.integer(20, 300)}};
  for (std::int64_t i = random.integer(4, 14); i > 0; --i) {
    const auto of = static_cast<std::size_t>(random.integer(0, std::ssize(spec.sequences) - 1));
    const std::int64_t whole = spec.sequences[of].kv_len / page;
    const std::int64_t shared = random.coin() ? whole : random.integer(0, whole);
    const std::int64_t own = random.integer(0, 3) * random.integer(0, 40);
    add_fork(spec, of, shared, shared == 0 ? own + 1 : own, random.integer(0, 3));
  }
  const MaskMod masks[] = {mods::causal(), mods::no_mask(), mods::sliding_window(150),
                           [](auto b, auto, auto, auto kv) { return kv >= 16 * (b % 3); }};
  spec.options.mask = masks[seed % 4];
  if (random.coin()) spec.options.score = mods::soft_cap(4.0f);
  return spec;
}

// With masks that hide a part of what is shared, of all sequences or of some.
TEST_P(AttendPrefixes, RandomTreesMatchFloat64) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    AttentionCase c(random_tree(GetParam(), seed));
    EXPECT_TRUE(c.matches(c.run(2))) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendPrefixes,
                         testing::Values(Pages{{8, 2, 64, 64, 16}, Dtype::kFloat32},
                                         Pages{{8, 1, 128, 128, 16}, Dtype::kBFloat16},
                                         Pages{{6, 2, 64, 64, 8}, Dtype::kFloat16},
                                         Pages{{8, 2, 96, 96, 16}, Dtype::kBFloat16},
                                         Pages{{4, 1, 160, 160, 16}, Dtype::kFloat16},
                                         Pages{{4, 2, 72, 40, 5}, Dtype::kBFloat16},
                                         Pages{{8, 2, 128, 128, 16}, Dtype::kFloat8E4M3},
                                         Pages{{16, 1, 576, 512, 16}, Dtype::kBFloat16, true}),
                         name_of_pages);

// A mod that reads the batch row, of which a task of several sequences has several.
TEST(AttendPrefixes, ScoreModKnowsTheSequence) {
  CaseSpec spec = spec_of({{4, 2, 64, 64, 16}, Dtype::kBFloat16});
  spec.sequences = {{.q_len = 1, .kv_len = 250}};
  for (std::int64_t i = 0; i < 9; ++i) add_fork(spec, 0, 15, i, 1 + i % 2);
  spec.options.score = ScoreMod([](auto score, auto b, auto h, auto q, auto kv) {
    return score + 0.01f * to_float((b + h + q - kv) % 7);
  });
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run(2)));
}

// Long enough for the prefix to be split.
TEST(AttendPrefixes, LongPrefixMatchesFloat64) {
  CaseSpec spec = spec_of({{16, 2, 64, 64, 16}, Dtype::kBFloat16});
  spec.sequences = {{.q_len = 1, .kv_len = 5010}};
  for (std::int64_t i = 0; i < 19; ++i) add_fork(spec, 0, 313, 1 + 40 * i, 1);
  expect_same(spec, "decode");
}

TEST(AttendPrefixes, NanReachesItsRowsOnly) {
  CaseSpec spec = spec_of({{8, 2, 64, 64, 16}, Dtype::kBFloat16});
  spec.sequences = {{.q_len = 1, .kv_len = 500}};
  for (std::int64_t i = 0; i < 7; ++i) add_fork(spec, 0, 31, 20, 1);
  spec.sequences.push_back({.q_len = 1, .kv_len = 90});
  AttentionCase in_prefix(spec);
  in_prefix.poison_value(0, 100);
  EXPECT_TRUE(in_prefix.matches(in_prefix.run(2),
                                [](std::int64_t token, std::int32_t) { return token < 8; }));
  AttentionCase in_own(spec);
  in_own.poison_key(3, 500);
  EXPECT_TRUE(
      in_own.matches(in_own.run(2), [](std::int64_t token, std::int32_t) { return token == 3; }));
}

}  // namespace
}  // namespace kvmesh::test
