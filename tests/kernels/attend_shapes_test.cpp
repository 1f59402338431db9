// Every dtype, head dim, group and page size, one at a time and at random.
#include <fmt/format.h>

#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

struct Dims {
  int k, v;
};

CaseSpec mixed_batch(const AttentionShape& shape, Dtype dtype, Dtype q_dtype) {
  CaseSpec spec{.shape = shape, .dtype = dtype, .q_dtype = q_dtype};
  spec.sequences = {
      {.q_len = 1, .kv_len = 77}, {.q_len = 5, .kv_len = 5}, {.q_len = 3, .kv_len = 130}};
  spec.options.mask = mods::causal();
  return spec;
}

class AttendDims : public testing::TestWithParam<Dims> {};

TEST_P(AttendDims, MatchFloat64InEveryDtype) {
  const auto [k_dim, v_dim] = GetParam();
  for (Dtype dtype : kDtypes) {
    for (Dtype q_dtype : {Dtype::kFloat32, dtype}) {
      AttentionCase c(mixed_batch({4, 2, k_dim, v_dim, 16}, dtype, q_dtype));
      EXPECT_TRUE(c.matches(c.run())) << name(dtype) << ", queries " << name(q_dtype);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, AttendDims,
    testing::Values(Dims{1, 1}, Dims{3, 3}, Dims{7, 7}, Dims{16, 16}, Dims{33, 33}, Dims{40, 40},
                    Dims{64, 64}, Dims{80, 80}, Dims{96, 96}, Dims{100, 100}, Dims{128, 128},
                    Dims{256, 256}, Dims{576, 576}, Dims{192, 128}, Dims{576, 512}, Dims{1, 33},
                    Dims{100, 3}, Dims{64, 40}, Dims{33, 64}, Dims{17, 576}),
    [](const auto& param) { return fmt::format("K{}V{}", param.param.k, param.param.v); });

struct Heads {
  int q, kv;
};

class AttendHeads : public testing::TestWithParam<Heads> {};

TEST_P(AttendHeads, MatchFloat64) {
  const auto [q_heads, kv_heads] = GetParam();
  for (Dtype dtype : kDtypes) {
    AttentionCase c(mixed_batch({q_heads, kv_heads, 48, 48, 16}, dtype, dtype));
    EXPECT_TRUE(c.matches(c.run())) << name(dtype);
  }
}

// Groups of 1, 2, 3, 4, 8 and 16; all heads on one key head; a group that no work block divides.
INSTANTIATE_TEST_SUITE_P(Kernels, AttendHeads,
                         testing::Values(Heads{1, 1}, Heads{5, 5}, Heads{4, 2}, Heads{9, 3},
                                         Heads{8, 2}, Heads{16, 2}, Heads{32, 2}, Heads{6, 1},
                                         Heads{48, 1}, Heads{21, 3}),
                         [](const auto& param) {
                           return fmt::format("Q{}Kv{}", param.param.q, param.param.kv);
                         });

class AttendPages : public testing::TestWithParam<int> {};

TEST_P(AttendPages, MatchFloat64AtEveryLength) {
  const int page_size = GetParam();
  CaseSpec spec{.shape = {4, 2, 32, 24, page_size}, .dtype = Dtype::kBFloat16};
  // Around the borders of pages and of the kernel's tiles of 64 keys.
  for (std::int64_t kv_len : {1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300}) {
    spec.sequences.push_back({.q_len = 2, .kv_len = kv_len});
  }
  for (std::int64_t edge : {page_size - 1, page_size, page_size + 1, 2 * page_size}) {
    spec.sequences.push_back({.q_len = 1, .kv_len = edge});
  }
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(c.run()));
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendPages, testing::Values(1, 2, 3, 5, 16, 64, 100, 128, 256),
                         testing::PrintToStringParamName());

class RandomCase {
 public:
  explicit RandomCase(std::uint64_t seed) : random_(seed) { spec_.seed = seed; }

  CaseSpec make() {
    const int kv_heads = number(1, 3);
    spec_.shape = {.q_heads = kv_heads * random_.pick(std::vector{1, 2, 3, 4, 5, 8, 16}),
                   .kv_heads = kv_heads,
                   .k_dim = number(1, random_.coin() ? 40 : 160),
                   .v_dim = number(1, random_.coin() ? 40 : 160),
                   .page_size = number(1, random_.coin() ? 8 : 140)};
    spec_.dtype = kDtypes[number(0, 2)];
    spec_.q_dtype = kDtypes[number(0, 2)];
    const int sequences = number(1, 5);
    for (int s = 0; s < sequences; ++s) add_sequence();
    if (random_.coin()) add_positions();
    if (random_.coin()) spec_.options.scale = 0.05f + 0.3f * std::abs(random_.real());
    spec_.options.mask = any_mask();
    spec_.options.score = any_score();
    spec_.options.first_head = spec_.shape.q_heads * number(0, 2);
    spec_.q.order = random_.coin() ? std::vector{0, 1, 2} : std::vector{1, 0, 2};
    spec_.pool.order = random_.coin() ? std::vector{0, 1, 2, 3} : std::vector{1, 0, 2, 3};
    spec_.pool.gap = number(0, 3);
    spec_.o.gap = number(0, 2);
    return spec_;
  }

 private:
  int number(int low, int high) { return static_cast<int>(random_.integer(low, high)); }

  void add_sequence() {
    CaseSequence sequence{.q_len = random_.integer(0, 6), .kv_len = random_.integer(0, 200)};
    if (random_.coin()) {  // as on one of several ranks
      sequence.local.emplace();
      for (std::int32_t page = 0; page * spec_.shape.page_size < sequence.kv_len; ++page) {
        if (random_.coin()) sequence.local->push_back(page);
      }
    }
    spec_.sequences.push_back(sequence);
  }
  void add_positions() {
    for (const CaseSequence& sequence : spec_.sequences) {
      for (std::int64_t i = 0; i < sequence.q_len; ++i) {
        spec_.positions.push_back(random_.integer(0, 220));
      }
    }
  }
  MaskMod any_mask() {
    const std::vector<MaskMod> masks{
        mods::no_mask(), mods::causal(), mods::sliding_window(number(1, 70)),
        mods::prefix_lm(number(0, 100)),
        [](auto, auto h, auto q, auto kv) { return (q + h + kv) % 3 != 1; }};
    return random_.pick(masks);
  }
  ScoreMod any_score() {
    const int heads = 3 * spec_.shape.q_heads;  // those of the ranks before this one, too
    const std::vector<ScoreMod> scores{ScoreMod(), mods::alibi(heads), mods::soft_cap(2.5f)};
    return random_.pick(scores);
  }

  Random random_;
  CaseSpec spec_;
};

TEST(AttendRandom, MatchesFloat64) {
  const std::uint64_t first = seed_or(std::random_device{}());
  for (std::uint64_t seed = first; seed < first + 150; ++seed) {
    SCOPED_TRACE(fmt::format("run it again with KVMESH_SEED={}", seed));
    AttentionCase c(RandomCase(seed).make());
    ASSERT_TRUE(c.matches(c.run(2)));
  }
}

}  // namespace
}  // namespace kvmesh::test
