// append: writes new keys and values to their slots.
#include <gtest/gtest.h>

#include "kvmesh/attention.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/owned_tensor.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
constexpr std::int64_t kTokens = 7, kHeads = 3, kKDim = 10, kVDim = 6, kPages = 5, kPageSize = 4;

struct Append {
  explicit Append(Dtype fresh = Dtype::kFloat32, Dtype pool = Dtype::kFloat32,
                  const Layout& fresh_layout = {}, const Layout& pool_layout = {})
      : pool_dtype(pool),
        k(fresh, {kTokens, kHeads, kKDim}, fresh_layout),
        v(fresh, {kTokens, kHeads, kVDim}, fresh_layout),
        k_pool(pool, {kPages, kHeads, kPageSize, kKDim}, pool_layout),
        v_pool(pool, {kPages, kHeads, kPageSize, kVDim}, pool_layout) {
    Random random(3);
    for (OwnedTensor* tensor : {&k, &v}) {
      for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t h = 0; h < kHeads; ++h) {
          for (std::int64_t d = 0; d < tensor->size(2); ++d) tensor->set(random.real(), t, h, d);
        }
      }
    }
  }

  KvPool pool() { return {k_pool.view(), v_pool.view()}; }
  void run(int threads = 1) {
    ThreadPool pool_of_threads(threads);
    append(pool(), k.view(), v.view(), slots, pool_of_threads);
  }

  // A value as stored in the pool's dtype.
  float stored(float value) const {
    std::uint64_t bits = 0;
    store_element(&bits, pool_dtype, 0, value);
    return load_element(&bits, pool_dtype, 0);
  }

  void expect_tokens_in_slots() const {
    std::int64_t here = 0;
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const TokenSlot& slot = slots[static_cast<std::size_t>(t)];
      if (slot.page < 0) continue;
      ++here;
      for (std::int64_t h = 0; h < kHeads; ++h) {
        for (std::int64_t d = 0; d < kKDim; ++d) {
          EXPECT_EQ(k_pool.at(slot.page, h, slot.offset, d), stored(k.at(t, h, d)));
        }
        for (std::int64_t d = 0; d < kVDim; ++d) {
          EXPECT_EQ(v_pool.at(slot.page, h, slot.offset, d), stored(v.at(t, h, d)));
        }
      }
    }
    EXPECT_EQ(k_pool.written(), here * kHeads * kKDim);
    EXPECT_EQ(v_pool.written(), here * kHeads * kVDim);
  }

  Dtype pool_dtype;
  OwnedTensor k, v, k_pool, v_pool;
  // Scattered slots; two of them are another rank's.
  std::vector<TokenSlot> slots{{4, 3}, {0, 0}, {-1, 0}, {2, 1}, {4, 0}, {-1, 9}, {1, 2}};
};

TEST(Append, EveryDtypeToEveryDtype) {
  for (Dtype fresh : kDtypes) {
    for (Dtype pool : kDtypes) {
      SCOPED_TRACE(std::string(name(fresh)) + " to " + std::string(name(pool)));
      Append a(fresh, pool);
      a.run();
      a.expect_tokens_in_slots();
    }
  }
}

TEST(Append, StridedTensors) {
  const Layout fresh[] = {{}, {.order = {1, 0, 2}}, {.gap = 3}, {.broadcast = {0}}};
  const Layout pools[] = {{}, {.order = {1, 0, 2, 3}}, {.order = {0, 2, 1, 3}, .gap = 2}};
  for (const Layout& from : fresh) {
    for (const Layout& to : pools) {
      for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
        Append a(Dtype::kFloat32, dtype, from, to);
        a.run(2);
        a.expect_tokens_in_slots();
      }
    }
  }
}

TEST(Append, NoTokens) {
  Append a;
  ThreadPool threads(2);
  ConstTensorView k = a.k.view(), v = a.v.view();
  k.shape[0] = v.shape[0] = 0;
  append(a.pool(), k, v, {}, threads);
  EXPECT_EQ(a.k_pool.written(), 0);
}

TEST(Append, OverwritesOldContents) {
  Append a;
  a.run();
  for (std::int64_t h = 0; h < kHeads; ++h) a.k.set(42.0f, 0, h, 1);
  a.run();
  a.expect_tokens_in_slots();
  EXPECT_EQ(a.k_pool.at(4, 0, 3, 1), 42.0f);
}

TEST(Append, LatentPagesTakeKeysAlone) {
  Append a;
  ThreadPool threads(1);
  const KvPool pool = kv_pool({.v_dim = 4}, {.kind = PageKind::kLatent}, {a.k_pool.view()});
  EXPECT_THROW(append(pool, a.k.view(), a.v.view(), a.slots, threads), InvalidArgument);
  EXPECT_EQ(a.k_pool.written(), 0);
  append(pool, a.k.view(), {}, a.slots, threads);
  EXPECT_EQ(a.k_pool.written(), 5 * kHeads * kKDim);
  EXPECT_EQ(a.k_pool.at(2, 1, 1, 9), a.k.at(3, 1, 9));
  EXPECT_THROW(append(a.pool(), a.k.view(), {}, a.slots, threads), InvalidArgument);
}

void expect_rejected(
    const std::function<void(Append&, ConstTensorView&, ConstTensorView&, KvPool&)>& spoil) {
  Append a;
  ConstTensorView k = a.k.view(), v = a.v.view();
  KvPool pool = a.pool();
  spoil(a, k, v, pool);
  ThreadPool threads(1);
  EXPECT_THROW(append(pool, k, v, a.slots, threads), InvalidArgument);
  EXPECT_EQ(a.k_pool.written(), 0);
  EXPECT_EQ(a.v_pool.written(), 0);
}

TEST(Append, ErrorsWriteNothing) {
  expect_rejected([](auto&, auto& k, auto&, auto&) { k.shape[0] = 6; });
  expect_rejected([](auto&, auto&, auto& v, auto&) { v.shape[0] = 8; });
  expect_rejected([](auto&, auto& k, auto&, auto&) { k.shape[1] = 2; });
  expect_rejected([](auto&, auto&, auto& v, auto&) { v.shape[1] = 2; });
  expect_rejected([](auto&, auto& k, auto&, auto&) { k.shape[2] = 9; });
  expect_rejected([](auto&, auto&, auto& v, auto&) { v.shape[2] = 9; });
  expect_rejected([](auto&, auto& k, auto&, auto&) { k.dims = 2; });
  expect_rejected([](auto&, auto&, auto& v, auto&) { v.dims = 4; });
  expect_rejected([](auto&, auto& k, auto&, auto&) { k.strides[2] = 2; });
  expect_rejected([](auto&, auto&, auto& v, auto&) { v.strides[2] = 2; });
  expect_rejected([](auto&, auto&, auto&, auto& pool) { pool.k.dims = 3; });
  expect_rejected([](auto&, auto&, auto&, auto& pool) { pool.v.shape[0] = 4; });
  expect_rejected([](auto&, auto&, auto&, auto& pool) { pool.v.dtype = Dtype::kFloat16; });
  expect_rejected([](auto&, auto&, auto&, auto& pool) { pool.k.strides[3] = 2; });
  expect_rejected([](auto& a, auto&, auto&, auto&) { a.slots.back().page = kPages; });
  expect_rejected([](auto& a, auto&, auto&, auto&) { a.slots.back().offset = kPageSize; });
  expect_rejected([](auto& a, auto&, auto&, auto&) { a.slots.back().offset = -1; });
  expect_rejected([](auto& a, auto&, auto&, auto&) { a.slots.pop_back(); });
}

}  // namespace
}  // namespace kvmesh::test
