// Float8 pages: the effect of quantisation on keys, values and attention.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <span>

#include "core/numbers/half.hpp"
#include "core/pod/float8.hpp"
#include "kvmesh/attention.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

constexpr int kTokens = 1024, kPageSize = 16, kPages = kTokens / kPageSize;
constexpr AttentionShape kShape{
    .q_heads = 8, .kv_heads = 2, .k_dim = 128, .v_dim = 128, .page_size = kPageSize};

std::vector<TokenSlot> slots_in_order() {
  std::vector<TokenSlot> slots;
  for (int t = 0; t < kTokens; ++t) slots.push_back({t / kPageSize, t % kPageSize});
  return slots;
}

// Memory for the planes of a format.
class Planes {
 public:
  Planes(const AttentionShape& shape, const KvFormat& format) : shape_(shape), format_(format) {
    const PageFormat page = make_page_format(shape, format);
    for (const PagePlane& plane : page.planes) {
      tensors_.emplace_back(plane.dtype, std::vector<std::int64_t>{kPages, page.heads,
                                                                   page.page_size, plane.elements});
    }
  }
  KvPool pool() {
    PagePlanes planes;
    for (OwnedTensor& tensor : tensors_) planes.push_back(tensor.view());
    const KvScales& scales = format_.scales;
    head_scales_ = scales.k_heads;
    head_scales_.insert(head_scales_.end(), scales.v_heads.begin(), scales.v_heads.end());
    return kv_pool(shape_, format_, planes, tensor(head_scales_.data(), {2, shape_.kv_heads}));
  }
  const OwnedTensor& operator[](std::size_t plane) const { return tensors_[plane]; }

 private:
  AttentionShape shape_;
  KvFormat format_;
  std::vector<OwnedTensor> tensors_;
  std::vector<float> head_scales_;
};

/// The distribution of keys and values. Queries are standard normal.
enum class Drawn : std::uint8_t {
  kNormal,     ///< standard normal
  kOutliers,   ///< standard normal, but 20 times as large in 4 of a head's 128 dims
  kHeavyTails  ///< Student's t with 3 degrees of freedom
};

// Keys, values and one row of queries, and attention over them in float64.
class DrawnTokens {
 public:
  explicit DrawnTokens(Drawn drawn, std::uint64_t seed = 17)
      : engine_(seed), q_(random(kShape.q_heads * kShape.k_dim, Drawn::kNormal)) {
    dense_.kv_heads = kShape.kv_heads;
    dense_.k_dim = kShape.k_dim;
    dense_.v_dim = kShape.v_dim;
    dense_.k = random(kTokens * kShape.kv_heads * kShape.k_dim, drawn);
    dense_.v = random(kTokens * kShape.kv_heads * kShape.v_dim, drawn);
  }

  struct Errors {
    double o = 0;    // |O - exact| / |exact|, as norms over all rows
    double lse = 0;  // the largest
  };
  Errors errors_of(const KvFormat& format) {
    Planes planes(kShape, format);
    ThreadPool threads(1);
    append(planes.pool(), tensor(dense_.k.data(), {kTokens, kShape.kv_heads, kShape.k_dim}),
           tensor(dense_.v.data(), {kTokens, kShape.kv_heads, kShape.v_dim}), slots_in_order(),
           threads);
    AttentionBatch batch{.q_indptr = {0, 1},
                         .kv_lens = {kTokens},
                         .q_positions = {},
                         .page_indptr = {0, kPages},
                         .pages = {}};
    for (std::int32_t page = 0; page < kPages; ++page) batch.pages.push_back({page, page});
    std::vector<float> o(kShape.q_heads * kShape.v_dim), lse(kShape.q_heads);
    AttentionPlan(kShape, batch, {})
        .attend_partial(tensor(q_.data(), {1, kShape.q_heads, kShape.k_dim}), planes.pool(),
                        {tensor(o.data(), {1, kShape.q_heads, kShape.v_dim}),
                         tensor(lse.data(), {1, kShape.q_heads})},
                        threads);
    return compare(o, lse);
  }
  /// The errors that the rounding of elements leads us to expect, to first order and not less: the
  /// root of O's mean square error, and the LSE's standard deviation in the worst head.
  Errors expected_errors(const KvScales& scales) const {
    Errors errors;
    double difference = 0, norm = 0;
    for (int head = 0; head < kShape.q_heads; ++head) {
      const ReferenceRow exact = reference(head);
      const float* const q = q_.data() + head * kShape.k_dim;
      double lse = 0;
      for (int t = 0; t < kTokens; ++t) {
        const std::span<const float> k = row(dense_.k, t, head), v = row(dense_.v, t, head);
        const double k_scale = scale_of(k, scales), v_scale = scale_of(v, scales);
        double dot = 0, score_error = 0;
        for (std::size_t d = 0; d < k.size(); ++d) {
          dot += double{q[d]} * k[d];
          score_error += double{q[d]} * q[d] * square_error(k[d], k_scale) / kShape.k_dim;
        }
        const double weight = std::exp(dot / std::sqrt(double{kShape.k_dim}) - exact.lse);
        lse += weight * weight * score_error;
        for (std::size_t d = 0; d < v.size(); ++d) {
          difference +=
              weight * weight *
              (score_error * std::pow(v[d] - exact.o[d], 2) + square_error(v[d], v_scale));
        }
      }
      errors.lse = std::max(errors.lse, std::sqrt(lse));
      for (double o : exact.o) norm += o * o;
    }
    errors.o = std::sqrt(difference / norm);
    return errors;
  }
  /// One scale for all keys and values, by which none saturates.
  KvScales scale_of_tensor() const {
    const float scale = std::max(largest(dense_.k), largest(dense_.v)) / kFloat8Max;
    return {.kind = ScaleKind::kPerTensor, .k = scale, .v = scale};
  }

 private:
  std::vector<float> random(int count, Drawn drawn) {
    std::normal_distribution<float> normal;
    std::student_t_distribution<float> heavy(3);
    std::vector<float> numbers;
    for (int i = 0; i < count; ++i) {
      const bool is_outlier = drawn == Drawn::kOutliers && i % 32 == 5;
      const float number = drawn == Drawn::kHeavyTails ? heavy(engine_) : normal(engine_);
      numbers.push_back(is_outlier ? 20 * number : number);
    }
    return numbers;
  }
  static float largest(std::span<const float> numbers) {
    float largest = 0;
    for (float number : numbers) largest = std::max(largest, std::abs(number));
    return largest;
  }
  static double scale_of(std::span<const float> row, const KvScales& scales) {
    return scales.kind == ScaleKind::kPerTensor ? scales.k : largest(row) / kFloat8Max;
  }
  // A rounding error lies anywhere within half a unit. That is at most 2^-4 of a number of 4 bits,
  // and 2^-10 of the scale for numbers below 2^-6 of it, which have fewer bits. The number that
  // sets the scale becomes the largest of the type, and has no error.
  static double square_error(double element, double scale) {
    if (std::abs(element) > (kFloat8Max - 1) * scale) return 0;
    const double most = std::max(std::abs(element) * 0x1p-4, scale * 0x1p-10);
    return most * most / 3;
  }
  // The row of query head `head`'s kv head; keys and values have equal dims.
  std::span<const float> row(const std::vector<float>& of, int token, int head) const {
    const int kv_head = head / (kShape.q_heads / kShape.kv_heads);
    return std::span(of).subspan(
        static_cast<std::size_t>(token * kShape.kv_heads + kv_head) * kShape.k_dim, kShape.k_dim);
  }
  ReferenceRow reference(int head) const {
    return reference_row(dense_, q_.data() + head * kShape.k_dim,
                         1 / std::sqrt(double{kShape.k_dim}), MaskMod{}, ScoreMod{}, 0, head,
                         kShape.q_heads / kShape.kv_heads, 0);
  }
  Errors compare(const std::vector<float>& o, const std::vector<float>& lse) const {
    Errors errors;
    double difference = 0, norm = 0;
    for (std::size_t head = 0; head < lse.size(); ++head) {
      const ReferenceRow exact = reference(static_cast<int>(head));
      errors.lse = std::max(errors.lse, std::abs(double{lse[head]} - exact.lse));
      for (std::size_t d = 0; d < exact.o.size(); ++d) {
        difference += std::pow(double{o[head * kShape.v_dim + d]} - exact.o[d], 2);
        norm += std::pow(exact.o[d], 2);
      }
    }
    errors.o = std::sqrt(difference / norm);
    return errors;
  }

  std::mt19937_64 engine_;
  std::vector<float> q_;
  DenseSequence dense_;
};

// The numbers of docs/contracts.md.
TEST(AttendFloat8, ErrorsOnNormalValues) {
  DrawnTokens tokens(Drawn::kNormal);
  const auto per_token = tokens.errors_of({.dtype = Dtype::kFloat8E4M3});
  const auto per_tensor =
      tokens.errors_of({.dtype = Dtype::kFloat8E4M3, .scales = tokens.scale_of_tensor()});
  const auto bfloat16 = tokens.errors_of({.dtype = Dtype::kBFloat16});
  for (const auto& [name, errors] :
       {std::pair{"per_token", per_token}, {"per_tensor", per_tensor}, {"bfloat16", bfloat16}}) {
    RecordProperty(name, std::to_string(errors.o) + " " + std::to_string(errors.lse));
  }
  EXPECT_LT(per_token.o, 0.045);
  EXPECT_LT(per_tensor.o, 0.045);
  EXPECT_LT(per_token.lse, 0.003);
  EXPECT_LT(per_tensor.lse, 0.003);
  EXPECT_LT(bfloat16.o, per_token.o / 8) << "the comparison sees what the storage does";
}

// The effect of roundings to 4 bits on scores that outliers dominate: O is within its root mean
// square, the LSE within three standard deviations. Means over draws are those of
// docs/contracts.md.
TEST(AttendFloat8, ErrorsOnOutliersAndHeavyTails) {
  constexpr int kDraws = 8;
  for (Drawn drawn : {Drawn::kOutliers, Drawn::kHeavyTails}) {
    for (ScaleKind kind : {ScaleKind::kPerTokenAndHead, ScaleKind::kPerTensor}) {
      const bool is_outliers = drawn == Drawn::kOutliers;
      SCOPED_TRACE(std::string(is_outliers ? "outliers, " : "heavy tails, ").append(name(kind)));
      double o = 0, expected_o = 0, bfloat16_o = 0, lse = 0;
      for (std::uint64_t draw = 0; draw < kDraws; ++draw) {
        DrawnTokens tokens(drawn, draw);
        const KvScales scales =
            kind == ScaleKind::kPerTensor ? tokens.scale_of_tensor() : KvScales{};
        const auto errors = tokens.errors_of({.dtype = Dtype::kFloat8E4M3, .scales = scales});
        const auto expected = tokens.expected_errors(scales);
        EXPECT_LT(errors.lse, 3 * expected.lse) << "draw " << draw;
        o += errors.o / kDraws;
        expected_o += expected.o / kDraws;
        bfloat16_o += tokens.errors_of({.dtype = Dtype::kBFloat16}).o / kDraws;
        lse = std::max(lse, errors.lse);
      }
      RecordProperty(std::string(is_outliers ? "outliers " : "heavy_tails ").append(name(kind)),
                     std::to_string(o) + " " + std::to_string(lse));
      EXPECT_LT(o, expected_o);
      EXPECT_GT(o, expected_o / 2) << "the expectation is one, and not any large number";
      EXPECT_LT(bfloat16_o, o / 4) << "the comparison sees what the storage does";
    }
  }
}

// Attention is exact for the pages' contents, whatever the scales of neighbours are.
TEST(AttendFloat8, MatchesFloat64) {
  const KvScales numbers{.kind = ScaleKind::kPerTensor, .k = 0.0025f, .v = 0.003f};
  const KvScales heads{
      .kind = ScaleKind::kPerHead, .k_heads = {0.0025f, 0.02f}, .v_heads = {0.004f, 0.003f}};
  for (const KvScales& scales : {KvScales{}, numbers, heads}) {
    CaseSpec spec{.shape = {8, 2, 64, 48, 16}, .dtype = Dtype::kFloat8E4M3};
    spec.scales = scales;
    spec.scale_bits = 12;
    spec.sequences = {{.q_len = 1, .kv_len = 333}, {.q_len = 20, .kv_len = 90}};
    spec.options.mask = mods::causal();
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(c.run())) << name(scales.kind);
  }
}

TEST(AttendFloat8, AScaleThatIsNanReachesTheRowsThatSeeIt) {
  CaseSpec spec{.shape = {4, 2, 32, 32, 16}, .dtype = Dtype::kFloat8E4M3};
  spec.sequences = {{.q_len = 3, .kv_len = 70}};
  spec.options.mask = mods::causal();
  AttentionCase c(spec);
  c.poison_value_scale(0, 68);
  EXPECT_TRUE(c.matches(c.run(), [](std::int64_t token, auto) { return token >= 1; }));
}

// One head of one token.
constexpr AttentionShape kOneRow{
    .q_heads = 1, .kv_heads = 1, .k_dim = 4, .v_dim = 3, .page_size = kPageSize};

void append_row(Planes& planes, std::vector<float> k, std::vector<float> v) {
  ThreadPool threads(1);
  const std::vector<TokenSlot> slots{{1, 2}};
  append(planes.pool(), tensor(k.data(), {1, 1, 4}), tensor(v.data(), {1, 1, 3}), slots, threads);
}

TEST(AppendFloat8, ScalesEachRowByItsLargestFiniteElement) {
  const float infinity = std::numeric_limits<float>::infinity();
  Planes planes(kOneRow, {.dtype = Dtype::kFloat8E4M3});
  append_row(planes, {7, -14, 3.5f, 0}, {-infinity, 2, std::nanf("")});
  EXPECT_EQ(planes[2].at(1, 0, 2, 0), 14 / 448.0f);
  EXPECT_EQ(planes[0].at(1, 0, 2, 0), 224);
  EXPECT_EQ(planes[0].at(1, 0, 2, 1), -448);
  EXPECT_EQ(planes[0].at(1, 0, 2, 3), 0);
  EXPECT_EQ(planes[3].at(1, 0, 2, 0), 2 / 448.0f);
  EXPECT_EQ(planes[1].at(1, 0, 2, 0), -448);
  EXPECT_EQ(planes[1].at(1, 0, 2, 1), 448);
  EXPECT_TRUE(std::isnan(planes[1].at(1, 0, 2, 2)));
  for (std::size_t plane : {0, 1, 2, 3}) {
    EXPECT_EQ(planes[plane].written(), plane == 0 ? 4 : plane == 1 ? 3 : 1);
  }
}

TEST(AppendFloat8, RowsOfZerosHaveAScale) {
  Planes planes(kOneRow, {.dtype = Dtype::kFloat8E4M3});
  append_row(planes, {0, 0, 0, 0}, {0, 0, 0});
  EXPECT_GT(planes[2].at(1, 0, 2, 0), 0);
  EXPECT_EQ(planes[0].at(1, 0, 2, 1), 0);
}

TEST(AppendFloat8, OneScaleForATensorSaturates) {
  Planes planes(kOneRow, {.dtype = Dtype::kFloat8E4M3,
                          .scales = {.kind = ScaleKind::kPerTensor, .k = 0.5f, .v = 2}});
  append_row(planes, {1, 300, -300, 0.25f}, {6, 1000, -2});
  EXPECT_EQ(planes[0].at(1, 0, 2, 0), 2);
  EXPECT_EQ(planes[0].at(1, 0, 2, 1), 448);
  EXPECT_EQ(planes[0].at(1, 0, 2, 2), -448);
  EXPECT_EQ(planes[1].at(1, 0, 2, 0), 3);
  EXPECT_EQ(planes[1].at(1, 0, 2, 1), 448);
}

TEST(AppendFloat8, OneScaleForEachHeadSaturates) {
  const AttentionShape shape{
      .q_heads = 2, .kv_heads = 2, .k_dim = 4, .v_dim = 3, .page_size = kPageSize};
  Planes planes(
      shape,
      {.dtype = Dtype::kFloat8E4M3,
       .scales = {.kind = ScaleKind::kPerHead, .k_heads = {0.5f, 1}, .v_heads = {2, 0.25f}}});
  std::vector<float> k{1, 300, -300, 0.25f, 1, 300, -500, 0.25f}, v{6, 1000, -2, 6, 1000, -2};
  ThreadPool threads(1);
  const std::vector<TokenSlot> slots{{1, 2}};
  append(planes.pool(), tensor(k.data(), {1, 2, 4}), tensor(v.data(), {1, 2, 3}), slots, threads);
  const std::vector<float> stored_k{2, 448, -448, 0.5f, 1, 288, -448, 0.25f};
  const std::vector<float> stored_v{3, 448, -1, 24, 448, -8};
  for (int head = 0; head < 2; ++head) {
    for (int d = 0; d < 4; ++d) {
      EXPECT_EQ(planes[0].at(1, head, 2, d), stored_k[static_cast<std::size_t>(head * 4 + d)]);
    }
    for (int d = 0; d < 3; ++d) {
      EXPECT_EQ(planes[1].at(1, head, 2, d), stored_v[static_cast<std::size_t>(head * 3 + d)]);
    }
  }
}

TEST(AppendFloat8, RefusesScalesThatFitNoPool) {
  Planes planes(kOneRow, {.dtype = Dtype::kFloat8E4M3});
  const auto refused = [&](const std::function<void(KvPool&)>& spoil) {
    KvPool pool = planes.pool();
    spoil(pool);
    ThreadPool threads(1);
    float numbers[4] = {};
    const std::vector<TokenSlot> slots{{0, 0}};
    EXPECT_THROW(
        append(pool, tensor(numbers, {1, 1, 4}), tensor(numbers, {1, 1, 3}), slots, threads),
        InvalidArgument);
  };
  refused([](KvPool& pool) { pool.k_scale.per_token.shape[0] = 1; });
  refused([](KvPool& pool) { pool.v_scale.per_token.shape[3] = 2; });
  refused([](KvPool& pool) { pool.k_scale.per_token.dtype = Dtype::kFloat16; });
  refused([](KvPool& pool) { pool.k_scale = {.number = 0}; });
  refused([](KvPool& pool) { pool.v_scale = {.number = std::nanf("")}; });
  Planes plain(kOneRow, {.dtype = Dtype::kFloat32});
  KvPool pool = plain.pool();
  pool.k_scale.number = 2;
  ThreadPool threads(1);
  float numbers[4] = {};
  EXPECT_THROW(append(pool, tensor(numbers, {0, 1, 4}), tensor(numbers, {0, 1, 3}), {}, threads),
               InvalidArgument);
}

// New keys, queries and outputs have no scales, so none of them may be float8.
TEST(AppendFloat8, IsATypeOfPagesAlone) {
  Planes planes(kOneRow, {.dtype = Dtype::kFloat8E4M3});
  std::uint8_t bytes[4] = {};
  ThreadPool threads(1);
  const ConstTensorView k(bytes, Dtype::kFloat8E4M3, {1, 1, 4}),
      v(bytes, Dtype::kFloat8E4M3, {1, 1, 3});
  const std::vector<TokenSlot> slots{{0, 0}};
  EXPECT_THROW(append(planes.pool(), k, v, slots, threads), InvalidArgument);
  EXPECT_EQ(planes[0].written(), 0);
}

}  // namespace
}  // namespace kvmesh::test
