// Passes every kernel every kind of invalid tensor.
#include "tests/support/hostile.hpp"

#include <vector>

#include "kvmesh/attention.hpp"

namespace kvmesh::test {
namespace {

// Three pages of 2 heads, 4 tokens, 8 elements; two new tokens; two queries of 4 heads.
struct KernelTensors {
  std::vector<float> memory = std::vector<float>(4096, 0.5f);
  TensorView at(std::int64_t offset, std::initializer_list<std::int64_t> shape) {
    return tensor(memory.data() + offset, shape);
  }
  KvPool pool{at(0, {3, 2, 4, 8}), at(200, {3, 2, 4, 8})};
  TensorView k = at(400, {2, 2, 8}), v = at(500, {2, 2, 8});
  TensorView q = at(600, {2, 4, 8}), o = at(700, {2, 4, 8}), lse = at(800, {2, 4});
};

class HostileTensors : public testing::Test {
 protected:
  KernelTensors t_;
  ThreadPool threads_{2};
};

TEST_F(HostileTensors, Append) {
  const std::vector<TokenSlot> slots{{0, 1}, {2, 3}};
  const auto call = [&](const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v) {
    append(pool, k, v, slots, threads_);
  };
  call(t_.pool, t_.k, t_.v);
  const std::vector<float> before = t_.memory;
  expect_refuses("k", t_.k, spoils<TensorView>(),
                 [&](const TensorView& k) { call(t_.pool, k, t_.v); });
  expect_refuses("v", t_.v, spoils<TensorView>(),
                 [&](const TensorView& v) { call(t_.pool, t_.k, v); });
  expect_refuses("pool.k", t_.pool.k, output_spoils(), [&](const TensorView& k) {
    call({k, t_.pool.v}, t_.k, t_.v);
  });
  expect_refuses("pool.v", t_.pool.v, output_spoils(), [&](const TensorView& v) {
    call({t_.pool.k, v}, t_.k, t_.v);
  });
  TensorView narrow = t_.v;
  narrow.dtype = Dtype::kBFloat16;
  EXPECT_THROW(call(t_.pool, t_.k, narrow), InvalidArgument) << "k and v of two types";
  EXPECT_EQ(t_.memory, before);
}

TEST_F(HostileTensors, CopyPages) {
  const std::vector<LocalPageCopy> copies{{0, 1, 4}};
  copy_pages({t_.pool.k, t_.pool.v}, copies);
  expect_refuses("pool.k", t_.pool.k, output_spoils(), [&](const TensorView& k) {
    copy_pages({k, t_.pool.v}, copies);
  });
  expect_refuses("pool.v", t_.pool.v, output_spoils(), [&](const TensorView& v) {
    copy_pages({t_.pool.k, v}, copies);
  });
  for (std::int32_t bad : {kLeastInt, -1, 3, kMostInt}) {
    for (const LocalPageCopy& copy : {LocalPageCopy{bad, 1, 1}, LocalPageCopy{0, bad, 1}}) {
      EXPECT_THROW(copy_pages({t_.pool.k, t_.pool.v}, {{copy}}), InvalidArgument) << bad;
    }
  }
  for (std::int32_t tokens : {kLeastInt, -1, 5, kMostInt}) {
    EXPECT_THROW(copy_pages({t_.pool.k, t_.pool.v}, {{LocalPageCopy{0, 1, tokens}}}),
                 InvalidArgument)
        << tokens;
  }
}

AttentionBatch batch() {
  return {.q_indptr = {0, 2},
          .kv_lens = {9},
          .q_positions = {},
          .page_indptr = {0, 3},
          .pages = {{0, 0}, {1, 1}, {2, 2}}};
}
constexpr AttentionShape kShape{4, 2, 8, 8, 4};

TEST_F(HostileTensors, AttendPartial) {
  AttentionPlan plan(kShape, batch(), {});
  const auto call = [&](const ConstTensorView& q, const ConstKvPool& pool, const Partial& out) {
    plan.attend_partial(q, pool, out, threads_);
  };
  const ConstKvPool pool{t_.pool.k, t_.pool.v};
  const Partial out{t_.o, t_.lse};
  call(t_.q, pool, out);
  const std::vector<float> before = t_.memory;
  expect_refuses("q", t_.q, spoils<TensorView>(), [&](const TensorView& q) { call(q, pool, out); });
  expect_refuses("pool.k", t_.pool.k, spoils<TensorView>(), [&](const TensorView& k) {
    call(t_.q, {k, pool.v}, out);
  });
  expect_refuses("pool.v", t_.pool.v, spoils<TensorView>(), [&](const TensorView& v) {
    call(t_.q, {pool.k, v}, out);
  });
  expect_refuses("o", t_.o, output_spoils(), [&](const TensorView& o) {
    call(t_.q, pool, {o, t_.lse});
  });
  expect_refuses("lse", t_.lse, output_spoils(), [&](const TensorView& lse) {
    call(t_.q, pool, {t_.o, lse});
  });
  EXPECT_EQ(t_.memory, before);
}

TEST_F(HostileTensors, PlansWithInvalidScalars) {
  for (float scale : {kNan, kInfinity, -kInfinity}) {
    EXPECT_THROW(AttentionPlan(kShape, batch(), {.scale = scale}), InvalidArgument) << scale;
  }
  EXPECT_NO_THROW(AttentionPlan(kShape, batch(), {.scale = -0.0f}));
  for (int head : {kLeastInt, -1}) {
    EXPECT_THROW(AttentionPlan(kShape, batch(), {.first_head = head}), InvalidArgument) << head;
  }
  for (std::int64_t queries : {kLeast, std::int64_t{-1}, std::int64_t{1} << 40, kMost}) {
    AttentionBatch bad = batch();
    bad.q_indptr.back() = queries;
    EXPECT_THROW(AttentionPlan(kShape, bad, {}), InvalidArgument) << queries;
  }
  for (std::int64_t length : {kLeast, std::int64_t{-1}, std::int64_t{1} << 31, kMost}) {
    AttentionBatch bad = batch();
    bad.kv_lens = {length};
    EXPECT_THROW(AttentionPlan(kShape, bad, {}), InvalidArgument) << length;
  }
}

TEST_F(HostileTensors, InvalidSoftCaps) {
  for (float cap : {kNan, kInfinity, -kInfinity, 0.0f, -1.0f}) {
    EXPECT_THROW(mods::soft_cap(cap), InvalidArgument) << cap;
  }
}

TEST_F(HostileTensors, MergeIntoAndToNatural) {
  const Partial source{t_.o, t_.lse};
  const Partial target{t_.at(1000, {2, 4, 8}), t_.at(1100, {2, 4})};
  merge_into(target, source);
  const auto o_of = [](const TensorView& o, const TensorView& lse) { return Partial{o, lse}; };
  expect_refuses("destination o", target.o, output_spoils(),
                 [&](const TensorView& o) { merge_into(o_of(o, target.lse), source); });
  expect_refuses("destination lse", target.lse, output_spoils(),
                 [&](const TensorView& lse) { merge_into(o_of(target.o, lse), source); });
  expect_refuses("source o", source.o, spoils<TensorView>(),
                 [&](const TensorView& o) { merge_into(target, o_of(o, source.lse)); });
  expect_refuses("source lse", source.lse, spoils<TensorView>(),
                 [&](const TensorView& lse) { merge_into(target, o_of(source.o, lse)); });
  expect_refuses("lse", t_.lse, output_spoils(), [&](const TensorView& lse) {
    (void)to_natural(Base2Partial{t_.o, lse});
  });
}

TEST(HostileViews, HaveUpToFourExtentsAndAStrideForEach) {
  float x[32] = {};
  EXPECT_THROW(tensor(x, {1, 1, 1, 1, 1}), InvalidArgument);
  EXPECT_THROW(TensorView(x, Dtype::kFloat32, {1, 1}, {1}), InvalidArgument);
  EXPECT_THROW(TensorView(x, Dtype::kFloat32, {1, 1}, {1, 1, 1, 1, 1}), InvalidArgument);
  EXPECT_THROW(TensorView(x, Dtype::kFloat32, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}), InvalidArgument);
  EXPECT_NO_THROW(tensor(x, {kMost, kMost, kMost, kMost}));
  TensorView odd = tensor(x, {2, 3});
  for (int dims : {-1, 5, kMostInt, kLeastInt}) {
    odd.dims = dims;
    EXPECT_NE(describe(odd).find(std::to_string(dims) + " dimensions"), std::string::npos);
  }
}

}  // namespace
}  // namespace kvmesh::test
