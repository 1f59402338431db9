// Page tables, pools and options that no engine should give: an error of kvmesh's own, and nothing
// is written.
#include <algorithm>

#include "kvmesh/external_pool.hpp"
#include "tests/support/hostile.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::test {
namespace {

using Numbers = std::vector<std::int32_t>;

constexpr std::int32_t kMost32 = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kLeast32 = std::numeric_limits<std::int32_t>::min();

// Two sequences of 6 and 3 tokens in pages of 4, of a pool of 5; the first appends its last.
struct Tables {
  Numbers q_indptr{0, 1, 3}, kv_lens{6, 3}, indptr{0, 2, 3}, indices{4, 0, 2}, appended{1, 0};
  std::optional<Numbers> logical{};
  std::int64_t row_length = 0;

  PageTables view() const {
    PageTables tables{.q_indptr = q_indptr,
                      .kv_lens = kv_lens,
                      .indptr = indptr,
                      .indices = indices,
                      .row_length = row_length,
                      .appended = appended};
    if (logical) tables.logical = *logical;
    return tables;
  }
};

OwnedTensor ones(std::vector<std::int64_t> shape) {
  OwnedTensor tensor(Dtype::kFloat32, shape);
  auto* const first = static_cast<float*>(tensor.view().data);
  std::fill_n(first, tensor.view().elements(), 1.0f);
  return tensor;
}

class HostileTables : public testing::Test {
 protected:
  static constexpr std::int64_t kPages = 5;

  KvPool layer() { return {k_.view(), v_.view()}; }
  void refuse(const std::function<void(Tables&)>& spoil) {
    Tables tables;
    spoil(tables);
    EXPECT_THROW((void)pool_.plan(tables.view()), InvalidArgument);
    EXPECT_THROW(pool_.replan(good_, tables.view()), InvalidArgument);
    run(good_);  // an earlier plan stays good
  }
  void refuse(const PlanOptions& options) {
    EXPECT_THROW((void)pool_.plan(Tables{}.view(), options), InvalidArgument);
  }
  void run(ExternalPlan& plan) {
    OwnedTensor o(Dtype::kFloat32, {3, 4, 6});
    plan.run(layer(), {.q = q_.view(), .k = fresh_k_.view(), .v = fresh_v_.view()},
             {.o = o.view()});
    EXPECT_GT(o.written(), 0);
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  OwnedTensor k_ = ones({kPages, 2, 4, 8}), v_ = ones({kPages, 2, 4, 6});
  OwnedTensor q_ = ones({3, 4, 8});
  OwnedTensor fresh_k_ = ones({1, 2, 8}), fresh_v_ = ones({1, 2, 6});
  ExternalPool pool_{mesh_, layer(), {.q_heads = 4}};
  ExternalPlan good_ = pool_.plan(Tables{}.view());
};

TEST_F(HostileTables, OfUnequalSizesAreRefused) {
  refuse([](Tables& t) { t.q_indptr = {}; });
  refuse([](Tables& t) { t.q_indptr = {0, 1}; });
  refuse([](Tables& t) { t.q_indptr = {1, 1, 3}; });
  refuse([](Tables& t) { t.q_indptr = {0, 2, 1}; });
  refuse([](Tables& t) { t.q_indptr = {0, kLeast32, 3}; });
  refuse([](Tables& t) { t.indptr = {}; });
  refuse([](Tables& t) { t.indptr = {0, 2}; });
  refuse([](Tables& t) { t.indptr = {0, 3, 2}; });
  refuse([](Tables& t) { t.indptr = {-1, 2, 3}; });
  refuse([](Tables& t) { t.indptr = {0, 2, 4}; });
  refuse([](Tables& t) { t.indptr = {0, 2, 2}; });
  refuse([](Tables& t) { t.appended = {1}; });
  refuse([](Tables& t) { t.row_length = 2; });
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{1}, kMost}) {
    refuse([&](Tables& t) {
      t.row_length = bad;
      t.indptr = {};
    });
  }
}

TEST_F(HostileTables, LengthsThatDoNotFit) {
  for (std::int32_t bad : {kLeast32, -1, 9, kMost32}) {  // 9 tokens need a third page
    refuse([&](Tables& t) { t.kv_lens[0] = bad; });
  }
  refuse([](Tables& t) { t.q_indptr = {0, 1, 5}; });  // four queries of three tokens
  for (std::int32_t bad : {kLeast32, -1, 7, kMost32}) {
    refuse([&](Tables& t) { t.appended[0] = bad; });
  }
}

TEST_F(HostileTables, PagesThatThePoolDoesNotHave) {
  for (std::int32_t bad : {kLeast32, -1, static_cast<std::int32_t>(kPages), kMost32}) {
    for (std::size_t entry : {0, 1, 2}) {
      refuse([&](Tables& t) { t.indices[entry] = bad; });
      refuse([&](Tables& t) {
        t.indices[entry] = bad;
        t.logical = Numbers{0, 1, 0};
      });
    }
  }
  Tables past;  // an entry that no token is in
  past.kv_lens = {4, 3};
  past.indices[1] = kMost32;
  EXPECT_NO_THROW((void)pool_.plan(past.view()));
  past.logical = Numbers{0, 1, 0};
  EXPECT_NO_THROW((void)pool_.plan(past.view()));
}

TEST_F(HostileTables, LogicalPagesOutOfOrder) {
  for (const Numbers& bad : {Numbers{1, 0, 0}, Numbers{0, 0, 0}, Numbers{-1, 0, 0},
                             Numbers{0, 1, kLeast32}, Numbers{0, 1}, Numbers{}}) {
    refuse([&](Tables& t) { t.logical = bad; });
  }
}

TEST_F(HostileTables, OnAnotherDevice) {
  const Tables given;
  for (Device bad : {Device{DeviceKind::kCuda, 0}, Device{DeviceKind::kCuda, -1},
                     Device{DeviceKind::kCpu, 1}, Device{static_cast<DeviceKind>(99), 0}}) {
    PageTables tables = given.view();
    tables.device = bad;
    EXPECT_THROW((void)pool_.plan(tables), InvalidArgument) << describe(bad);
    EXPECT_THROW(pool_.replan(good_, tables), InvalidArgument) << describe(bad);
    run(good_);
  }
}

TEST_F(HostileTables, TokenLists) {
  const Numbers lists{0, 5, 2, -1, -1, 1};  // two positions for each of three queries
  Tables tables;
  tables.appended = {0, 0};
  PageTables listed = tables.view();
  listed.token_lists = lists;
  listed.list_length = 2;
  ExternalPlan plan = pool_.plan(listed);
  EXPECT_THROW(pool_.replan(plan, tables.view()), InvalidArgument);
  EXPECT_THROW(pool_.replan(good_, listed), InvalidArgument);
  for (std::int32_t bad : {kLeast32, -2, 6, kMost32}) {
    Numbers spoilt = lists;
    spoilt[1] = bad;
    PageTables of_bad = listed;
    of_bad.token_lists = spoilt;
    EXPECT_THROW((void)pool_.plan(of_bad), InvalidArgument) << bad;
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{1}, std::int64_t{3}, kMost}) {
    PageTables of_bad = listed;
    of_bad.list_length = bad;
    EXPECT_THROW((void)pool_.plan(of_bad), InvalidArgument) << bad;
  }
  const MaskMod rows([](auto b, auto, auto, auto) { return b == 0; });
  EXPECT_THROW((void)pool_.plan(listed, {.mask = rows}), InvalidArgument);
  for (const StepLimits& bad :
       {StepLimits{.sequences = 3}, StepLimits{.sequences = 1, .query_tokens = 3},
        StepLimits{.sequences = kMost, .query_tokens = kMost}}) {
    EXPECT_THROW((void)pool_.plan(listed, {.limits = bad}), InvalidArgument);
  }
  const Numbers appended{1, 0};
  listed.appended = appended;
  EXPECT_THROW((void)pool_.plan(listed), InvalidArgument);
}

TEST_F(HostileTables, OptionsOfPlans) {
  for (std::int64_t position : {kLeast, std::int64_t{-1}, kMost}) {
    refuse(PlanOptions{.q_positions = {0, 1, position}});
  }
  refuse(PlanOptions{.q_positions = {0, 1}});
  refuse(PlanOptions{.limits = StepLimits{.sequences = 1, .query_tokens = 2}});
  refuse(PlanOptions{.limits = StepLimits{.sequences = 2, .query_tokens = 1}});
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, kMost}) {
    refuse(PlanOptions{.limits = StepLimits{.sequences = bad}});
    refuse(PlanOptions{.limits = StepLimits{.sequences = 2, .query_tokens = 2, .pages = bad}});
  }
  const BlockMask narrow =
      BlockMask::create(mods::causal(), {.q_len = 2, .kv_len = 8, .kv_block = 2});
  refuse(PlanOptions{.block_mask = &narrow});
  refuse(PlanOptions{.fixed_split_tokens = 100});
  refuse(PlanOptions{.scatter = static_cast<Scatter>(99)});
}

TEST_F(HostileTables, PoolsOfAnotherForm) {
  const Tables tables;
  const auto run_with = [&](const KvPool& pool) {
    OwnedTensor o(Dtype::kFloat32, {3, 4, 6});
    EXPECT_THROW(good_.run(pool, {.q = q_.view()}, {.o = o.view()}), InvalidArgument);
    EXPECT_EQ(o.written(), 0);
  };
  expect_refuses("pool: k", layer().k, spoils<TensorView>(), [&](const TensorView& k) {
    OwnedTensor o(Dtype::kFloat32, {3, 4, 6});
    good_.run({k, layer().v}, {.q = q_.view()}, {.o = o.view()});
  });
  OwnedTensor fewer(Dtype::kFloat32, {kPages - 1, 2, 4, 8}),
      half(Dtype::kFloat16, {kPages, 2, 4, 8});
  run_with({fewer.view(), layer().v});
  run_with({half.view(), layer().v});
  KvPool latent{layer().k, layer().k};
  latent.v.shape[3] = 6;
  run_with(latent);
  KvPool scaled = layer();
  scaled.k_scale.number = 2;
  run_with(scaled);
}

TEST_F(HostileTables, OptionsOfPools) {
  for (int bad : {kLeastInt, -1, 0, 3, kMostInt}) {
    EXPECT_THROW(ExternalPool(mesh_, layer(), {.q_heads = bad}), InvalidArgument) << bad;
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{3}, std::int64_t{6}, kMost}) {
    EXPECT_THROW(ExternalPool(mesh_, layer(), {.q_heads = 4, .interleave = bad}), InvalidArgument)
        << bad;
  }
  KvPool elsewhere = layer();
  elsewhere.k.device = elsewhere.v.device = {DeviceKind::kCuda, 0};
  EXPECT_THROW(ExternalPool(mesh_, elsewhere, {.q_heads = 4}), InvalidArgument);
  EXPECT_THROW((void)side_by_side_pool(layer().k, 8), InvalidArgument);
  EXPECT_THROW((void)side_by_side_pool(layer().k, 0), InvalidArgument);
  TensorView flat = layer().k;
  flat.dims = 3;
  EXPECT_THROW((void)nhd_pool(flat, flat), InvalidArgument);
}

// Pages that do not begin at whole turns; and turns where logical pages are listed.
TEST(HostileTurns, AreRefusedIfStridesDoNotAllowThem) {
  run_on_threads(
      2,
      [](Mesh& mesh) {
        OwnedTensor k(Dtype::kFloat32, {3, 2, 4, 8}), v(Dtype::kFloat32, {3, 2, 4, 8});
        TensorView apart = k.view();
        apart.strides[0] = 2 * 4 * 8 - 8;  // pages overlap by a row: 7 rows apart
        EXPECT_THROW(ExternalPool(mesh, KvPool{apart, apart}, {.q_heads = 2, .interleave = 2}),
                     InvalidArgument);
        ExternalPool pool(mesh, KvPool{k.view(), v.view()}, {.q_heads = 2, .interleave = 2});
        const Numbers q_indptr{0, 1}, kv_lens{3}, indptr{0, 1}, indices{0}, logical{0};
        PageTables tables{
            .q_indptr = q_indptr, .kv_lens = kv_lens, .indptr = indptr, .indices = indices};
        ExternalPlan plan = pool.plan(tables);
        KvPool other{k.view(), v.view()};
        other.v.strides[0] -= 8;
        OwnedTensor q(Dtype::kFloat32, {1, 2, 8}), o(Dtype::kFloat32, {1, 2, 8});
        EXPECT_THROW(plan.run(other, {.q = q.view()}, {.o = o.view()}), InvalidArgument);
        EXPECT_EQ(o.written(), 0);
        tables.logical = logical;
        EXPECT_THROW((void)pool.plan(tables), InvalidArgument);
      },
      {.threads = 1});
}

// Keys and values in one tensor [pages, 2, ...] whose dims differ lie another number of units
// apart.
TEST(HostileTurns, AreRefusedIfKeysAndValuesDoNotAgree) {
  run_on_threads(
      2,
      [](Mesh& mesh) {
        OwnedTensor both(Dtype::kFloat32, {3, 4 * (16 + 8)});
        float* const at = static_cast<float*>(both.view().data);
        const KvPool pairs{{at, Dtype::kFloat32, {3, 1, 4, 16}, {96, 64, 16, 1}},
                           {at + 64, Dtype::kFloat32, {3, 1, 4, 8}, {96, 32, 8, 1}}};
        EXPECT_THROW(ExternalPool(mesh, pairs, {.q_heads = 2, .interleave = 2}), InvalidArgument);
        ExternalPool pool(mesh, pairs, {.q_heads = 2});
        const Numbers q_indptr{0, 1}, kv_lens{3}, indptr{0, 1}, indices{0}, lists{1, 2};
        PageTables tables{
            .q_indptr = q_indptr, .kv_lens = kv_lens, .indptr = indptr, .indices = indices};
        (void)pool.plan(tables);
        tables.token_lists = lists;
        tables.list_length = 2;
        EXPECT_THROW((void)pool.plan(tables), InvalidArgument);
      },
      {.threads = 1});
}

TEST(ExternalPlans, OutliveTheirPoolAndMesh) {
  OwnedTensor k(Dtype::kFloat32, {2, 1, 4, 8}), q(Dtype::kFloat32, {1, 1, 8});
  OwnedTensor o(Dtype::kFloat32, {1, 1, 8});
  ExternalPlan plan;
  EXPECT_FALSE(plan);
  EXPECT_THROW(plan.run({}, {}, {}), InvalidArgument);
  EXPECT_THROW((void)plan.query_tokens(), InvalidArgument);
  {
    Mesh mesh(make_single_communicator(), {.threads = 1});
    ExternalPool pool(mesh, KvPool{k.view(), k.view()}, {.q_heads = 1});
    const Numbers q_indptr{0, 1}, none{0}, indptr{0, 0};
    plan =
        pool.plan({.q_indptr = q_indptr, .kv_lens = none, .indptr = indptr}, {.q_positions = {3}});
    ExternalPool moved = std::move(pool);
    EXPECT_THROW((void)pool.plan({}), InvalidArgument);
    ExternalPool other(mesh, KvPool{k.view(), k.view()}, {.q_heads = 1});
    EXPECT_THROW(other.replan(plan, {}), InvalidArgument);
  }
  plan.run({k.view(), k.view()}, {.q = q.view()}, {.o = o.view()});
  EXPECT_EQ(o.at(0, 0, 0), 0.0f) << "no key is visible";
}

}  // namespace
}  // namespace kvmesh::test
