// Attention of reproducible caches on a GPU: a row's bits depend on its keys alone. Rows of
// several ranks are merged here as the host does it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/gpu/exact_run.hpp"

namespace kvmesh::test {
namespace {

constexpr Dtype kHalves[] = {Dtype::kFloat16, Dtype::kBFloat16};

CaseResult finished_by_host(AttentionCase& c) { return finished(c, rows_of(c, c.batch())); }

struct Sizes {
  AttentionShape shape;
  std::int64_t q_len;
};
class AttendExactSizes : public testing::TestWithParam<Sizes> {};

std::string name_of_sizes(const testing::TestParamInfo<Sizes>& info) {
  const auto& [shape, q_len] = info.param;
  return fmt::format("H{}Kv{}K{}V{}P{}Q{}", shape.q_heads, shape.kv_heads, shape.k_dim, shape.v_dim,
                     shape.page_size, q_len);
}

TEST_P(AttendExactSizes, MatchFloat64) {
  const auto& [shape, q_len] = GetParam();
  for (const Dtype dtype : kHalves) {
    CaseSpec spec{.shape = shape, .dtype = dtype, .q_dtype = dtype};
    spec.sequences = {{.q_len = q_len, .kv_len = q_len},
                      {.q_len = 1, .kv_len = 333},
                      {.q_len = q_len, .kv_len = q_len + 201},
                      {.q_len = 1, .kv_len = 0}};
    spec.options.mask = mods::causal();
    AttentionCase masked(spec);
    EXPECT_TRUE(masked.matches(finished_by_device(masked))) << name(dtype);
    EXPECT_TRUE(masked.matches(finished_by_host(masked)));
    spec.q_dtype = Dtype::kFloat32;
    spec.options.mask = mods::no_mask();
    spec.options.score = mods::alibi(shape.q_heads);
    spec.o = {.gap = 1};  // rows that are not aligned
    AttentionCase modified(spec);
    EXPECT_TRUE(modified.matches(finished_by_device(modified))) << name(dtype) << " ALiBi";
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kernels, AttendExactSizes,
    testing::Values(Sizes{{8, 1, 128, 128, 16}, 1}, Sizes{{8, 2, 128, 128, 64}, 13},
                    Sizes{{8, 2, 64, 64, 16}, 8}, Sizes{{8, 2, 64, 64, 8}, 100},
                    Sizes{{16, 1, 128, 128, 1}, 20}, Sizes{{2, 2, 96, 96, 48}, 150},
                    Sizes{{4, 1, 192, 128, 16}, 3}, Sizes{{4, 2, 256, 256, 16}, 9},
                    Sizes{{8, 1, 256, 256, 16}, 70}, Sizes{{4, 2, 72, 40, 5}, 17},
                    Sizes{{4, 2, 64, 144, 32}, 2}, Sizes{{130, 1, 64, 64, 16}, 2},
                    Sizes{{67, 1, 64, 64, 16}, 2}, Sizes{{8, 1, 576, 512, 16}, 3}),
    name_of_sizes);

TEST(AttendExact, ReadsLatentPages) {
  CaseSpec spec{.shape = {16, 1, 576, 512, 64},
                .dtype = Dtype::kBFloat16,
                .q_dtype = Dtype::kBFloat16,
                .latent = true};
  spec.sequences = {{.q_len = 2, .kv_len = 300}, {.q_len = 1, .kv_len = 90}};
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(finished_by_device(c)));
}

TEST(AttendExact, CountsSinks) {
  CaseSpec spec = three_sequences(16, Dtype::kFloat16);
  spec.sinks = {0.5f, -2.0f, 3.0f, -std::numeric_limits<float>::infinity(), 0.0f, 9.0f};
  AttentionCase c(spec);
  EXPECT_TRUE(c.matches(finished_by_device(c)));
}

TEST(AttendExact, BitsDoNotDependOnPlacement) {
  expect_bits_of_any_placement(
      [](AttentionCase& c, const AttentionBatch& batch) { return rows_of(c, batch); });
}

/// The rows of some tokens of the first sequence alone, as a batch of their own.
ExactResult rows_of_tokens(AttentionCase& c, std::int64_t begin, std::int64_t count,
                           std::int64_t short_rows) {
  AttentionBatch batch = c.batch();
  batch.q_indptr = {0, count};
  batch.kv_lens.resize(1);
  batch.page_indptr.resize(2);
  batch.q_positions.clear();
  for (std::int64_t t = begin; t < begin + count; ++t) {
    batch.q_positions.push_back(c.position_of(0, t));
  }
  ConstTensorView q = c.q();
  q.data = static_cast<const std::byte*>(q.data) +
           static_cast<std::size_t>(begin * q.stride(0)) * size_bytes(q.dtype);
  q.shape[0] = count;
  return DeviceRun(c, batch, q, short_rows).rows();
}

// One token, several, or all of a prompt at a time: other kernels, blocks of rows and splits.
TEST(AttendExact, BitsDoNotDependOnTheRowsOfABatch) {
  for (const int page_size : {1, 16}) {
    const std::int64_t keys = page_size == 1 ? 9000 : 70'000;
    CaseSpec spec{
        .shape = {4, 2, 64, 64, page_size}, .dtype = Dtype::kBFloat16, .q_dtype = Dtype::kBFloat16};
    constexpr std::int64_t kQueries = 400;
    spec.sequences = {{.q_len = kQueries, .kv_len = keys}};
    spec.options.mask = mods::causal();
    AttentionCase c(spec);
    ExactResult whole = rows_of(c, c.batch());
    const std::int64_t row_bytes = whole.rows().row_bytes();
    const std::int64_t token_bytes = 4 * row_bytes;
    for (const std::int64_t count : {1, 2, 5, 16, 31, 100}) {
      for (const std::int64_t begin : {std::int64_t{0}, std::int64_t{7}, kQueries - count}) {
        ExactResult some = rows_of_tokens(c, begin, count, std::min<std::int64_t>(2 * count, 64));
        EXPECT_TRUE(std::equal(some.rows().bytes(0), some.rows().bytes(0) + count * token_bytes,
                               whole.rows().bytes(4 * begin)))
            << count << " tokens from " << begin << ", pages of " << page_size;
      }
    }
  }
}

// More chunks in one task than the limbs of its warps have room for (4092): they are stored on the
// way. One sequence alone is split into tasks that are far shorter.
TEST(AttendExact, LongTasksHaveTheBitsOfShortOnes) {
  constexpr std::int64_t kKeys = 4300;
  CaseSpec spec{.shape = {8, 1, 64, 64, 1}, .dtype = Dtype::kFloat16, .q_dtype = Dtype::kFloat16};
  spec.sequences = {{.q_len = 1, .kv_len = kKeys}};
  AttentionCase c(spec);
  const ExactResult one = rows_of(c, c.batch());
  // So many sequences that each is one task.
  constexpr std::int64_t kCopies = 2500;
  AttentionBatch many{
      .q_indptr = {0}, .kv_lens = {}, .q_positions = {}, .page_indptr = {0}, .pages = {}};
  const std::vector<LocalPage>& pages = c.batch().pages;
  for (std::int64_t s = 1; s <= kCopies; ++s) {
    many.q_indptr.push_back(s);
    many.kv_lens.push_back(kKeys);
    many.page_indptr.push_back(s * std::ssize(pages));
    many.pages.insert(many.pages.end(), pages.begin(), pages.end());
  }
  ConstTensorView q = c.q();
  q.shape[0] = kCopies;
  q.strides[0] = 0;
  ExactResult all = DeviceRun(c, many, q).rows();
  ExactResult want = one;
  const std::int64_t token_bytes = 8 * want.rows().row_bytes();
  for (std::int64_t s = 0; s < kCopies; ++s) {
    ASSERT_TRUE(std::equal(all.rows().bytes(8 * s), all.rows().bytes(8 * s) + token_bytes,
                           want.rows().bytes(0)))
        << s;
  }
}

TEST(AttendExact, BitsOfARowAreNotThoseOfItsNeighbours) {
  CaseSpec spec = three_sequences(16, Dtype::kFloat16);
  AttentionCase c(spec);
  ExactResult whole = rows_of(c, c.batch());
  AttentionCase poisoned(spec);
  poisoned.poison_value(0, 328);  // seen by some of its rows
  poisoned.poison_key(2, 2199);
  ExactResult other = rows_of(poisoned, poisoned.batch());
  const std::int64_t row_bytes = whole.rows().row_bytes();
  std::int64_t equal = 0;
  for (std::int64_t row = 0; row < c.tokens() * 6; ++row) {
    const std::int64_t token = row / 6;
    const bool is_of_first = token < 9;
    const std::int32_t position = is_of_first ? c.position_of(0, token) : 0;
    const bool sees = is_of_first ? position >= 328 : token == 11;
    const bool is_equal = std::equal(whole.rows().bytes(row), whole.rows().bytes(row) + row_bytes,
                                     other.rows().bytes(row));
    EXPECT_EQ(is_equal, !sees) << row;
    equal += is_equal;
  }
  EXPECT_GT(equal, 0);
}

TEST(AttendExact, NanStaysInItsRow) {
  expect_nan_stays_in_its_row(finished_by_device);
  expect_nan_stays_in_its_row(finished_by_host);
}

TEST(AttendExact, TakesScoresOfAnySize) {
  expect_scores_of_any_size(Dtype::kFloat16, finished_by_device);
}

// The rows of a device and of the host finish alike but for the last place of a logarithm.
TEST(AttendExact, DeviceFinishesAsTheHost) {
  AttentionCase c(three_sequences(16, Dtype::kBFloat16));
  const CaseResult device = finished_by_device(c);
  const CaseResult host = finished_by_host(c);
  for (std::int64_t t = 0; t < c.tokens(); ++t) {
    for (std::int64_t h = 0; h < 6; ++h) {
      const float want = host.lse.at(t, h), got = device.lse.at(t, h);
      EXPECT_TRUE(got == want || std::abs(got - want) <= 2e-7f * std::abs(want)) << got << want;
      for (std::int64_t d = 0; d < 24; ++d) EXPECT_EQ(device.o.at(t, h, d), host.o.at(t, h, d));
    }
  }
}

TEST(AttendExact, RefusesPagesWithoutTensorCores) {
  for (const auto& [dtype, dim] : {std::pair{Dtype::kFloat32, 64}, {Dtype::kFloat16, 20}}) {
    CaseSpec spec{.shape = {2, 1, dim, dim, 16}, .dtype = dtype};
    spec.sequences = {{.q_len = 1, .kv_len = 20}};
    AttentionCase c(spec);
    EXPECT_THROW(rows_of(c, c.batch()), Unsupported);
  }
}

}  // namespace
}  // namespace kvmesh::test
