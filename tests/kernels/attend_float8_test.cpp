// Float8 pages: the effect of quantisation on keys, values and attention.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

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
    return kv_pool(shape_, format_, planes);
  }
  const OwnedTensor& operator[](std::size_t plane) const { return tensors_[plane]; }

 private:
  AttentionShape shape_;
  KvFormat format_;
  std::vector<OwnedTensor> tensors_;
};

// Standard normal keys, values and one row of queries, and attention over them in float64.
class NormalTokens {
 public:
  NormalTokens() : q_(random(kShape.q_heads * kShape.k_dim)) {
    dense_.kv_heads = kShape.kv_heads;
    dense_.k_dim = kShape.k_dim;
    dense_.v_dim = kShape.v_dim;
    dense_.k = random(kTokens * kShape.kv_heads * kShape.k_dim);
    dense_.v = random(kTokens * kShape.kv_heads * kShape.v_dim);
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
  float largest() const {
    float largest = 0;
    for (float k : dense_.k) largest = std::max(largest, std::abs(k));
    for (float v : dense_.v) largest = std::max(largest, std::abs(v));
    return largest;
  }

 private:
  std::vector<float> random(int count) {
    std::normal_distribution<float> normal;
    std::vector<float> numbers(static_cast<std::size_t>(count));
    for (float& number : numbers) number = normal(engine_);
    return numbers;
  }
  Errors compare(const std::vector<float>& o, const std::vector<float>& lse) const {
    Errors errors;
    double difference = 0, norm = 0;
    for (std::size_t head = 0; head < lse.size(); ++head) {
      const ReferenceRow exact = reference_row(
          dense_, q_.data() + head * kShape.k_dim, 1 / std::sqrt(double{kShape.k_dim}), MaskMod{},
          ScoreMod{}, 0, static_cast<std::int32_t>(head), kShape.q_heads / kShape.kv_heads, 0);
      errors.lse = std::max(errors.lse, std::abs(double{lse[head]} - exact.lse));
      for (std::size_t d = 0; d < exact.o.size(); ++d) {
        difference += std::pow(double{o[head * kShape.v_dim + d]} - exact.o[d], 2);
        norm += std::pow(exact.o[d], 2);
      }
    }
    errors.o = std::sqrt(difference / norm);
    return errors;
  }

  std::mt19937_64 engine_{17};
  std::vector<float> q_;
  DenseSequence dense_;
};

// The numbers of docs/contracts.md.
TEST(AttendFloat8, ErrorsOnNormalValues) {
  NormalTokens tokens;
  const auto per_token = tokens.errors_of({.dtype = Dtype::kFloat8E4M3});
  const float scale = tokens.largest() / kFloat8Max;
  const auto per_tensor =
      tokens.errors_of({.dtype = Dtype::kFloat8E4M3,
                        .scales = {.kind = ScaleKind::kPerTensor, .k = scale, .v = scale}});
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

// Attention is exact for the pages' contents, whatever the scales of neighbours are.
TEST(AttendFloat8, MatchesFloat64) {
  constexpr KvScales kNumbers{.kind = ScaleKind::kPerTensor, .k = 0.0025f, .v = 0.003f};
  for (const KvScales& scales : {KvScales{}, kNumbers}) {
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
