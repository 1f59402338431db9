// copy_pages: the effect of a fork's copy on write on the pool.
#include <gtest/gtest.h>

#include "kvmesh/attention.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kCopiedPages = 6, kCopiedHeads = 2, kCopiedPageSize = 5, kCopiedKDim = 9,
                       kCopiedVDim = 4;

struct Pool {
  explicit Pool(Dtype dtype = Dtype::kFloat32, const Layout& layout = {})
      : k(dtype, {kCopiedPages, kCopiedHeads, kCopiedPageSize, kCopiedKDim}, layout),
        v(dtype, {kCopiedPages, kCopiedHeads, kCopiedPageSize, kCopiedVDim}, layout) {}

  PagePlanes planes() { return {k.view(), v.view()}; }

  // Numbers that identify their position, small enough for every dtype.
  void fill(std::int64_t page) {
    for (OwnedTensor* half : {&k, &v}) {
      for (std::int64_t h = 0; h < kCopiedHeads; ++h) {
        for (std::int64_t t = 0; t < kCopiedPageSize; ++t) {
          for (std::int64_t d = 0; d < half->size(3); ++d)
            half->set(value(page, h, t, d), page, h, t, d);
        }
      }
    }
  }
  static float value(std::int64_t page, std::int64_t h, std::int64_t t, std::int64_t d) {
    return static_cast<float>((page * 2 + h) * 5 + t) + static_cast<float>(d) / 16.0f;
  }

  // The first `tokens` tokens of `page` are those of `source`, the others were never written.
  void expect_copy(std::int64_t page, std::int64_t source, std::int64_t tokens) const {
    for (const OwnedTensor* half : {&k, &v}) {
      for (std::int64_t h = 0; h < kCopiedHeads; ++h) {
        for (std::int64_t t = 0; t < kCopiedPageSize; ++t) {
          for (std::int64_t d = 0; d < half->size(3); ++d) {
            const float found = half->at(page, h, t, d);
            EXPECT_TRUE(t < tokens ? found == half->at(source, h, t, d) : std::isnan(found));
          }
        }
      }
    }
  }

  OwnedTensor k, v;
};

TEST(CopyPages, CopiesTheFirstTokens) {
  const Layout layouts[] = {{}, {.order = {1, 0, 2, 3}}, {.order = {0, 2, 1, 3}, .gap = 3}};
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    for (const Layout& layout : layouts) {
      Pool pool(dtype, layout);
      pool.fill(1);
      pool.fill(4);
      const LocalPageCopy copies[] = {{1, 0, 3}, {4, 5, kCopiedPageSize}, {1, 2, 0}};
      copy_pages(pool.planes(), copies);
      pool.expect_copy(0, 1, 3);
      pool.expect_copy(5, 4, kCopiedPageSize);
      pool.expect_copy(2, 1, 0);
      pool.expect_copy(3, 1, 0);
      EXPECT_EQ(pool.k.written(), kCopiedHeads * kCopiedKDim * (3 * kCopiedPageSize + 3));
    }
  }
}

// In order: a copy may read what the one before it wrote.
TEST(CopyPages, InOrder) {
  Pool pool;
  pool.fill(0);
  const LocalPageCopy copies[] = {{0, 1, 4}, {1, 2, 2}};
  copy_pages(pool.planes(), copies);
  pool.expect_copy(1, 0, 4);
  pool.expect_copy(2, 0, 2);
}

TEST(CopyPages, ErrorsWriteNothing) {
  for (const LocalPageCopy& wrong :
       {LocalPageCopy{-1, 2, 1}, LocalPageCopy{1, -2, 1}, LocalPageCopy{kCopiedPages, 2, 1},
        LocalPageCopy{1, kCopiedPages, 1}, LocalPageCopy{1, 2, -1},
        LocalPageCopy{1, 2, kCopiedPageSize + 1}}) {
    Pool pool;
    pool.fill(1);
    const LocalPageCopy copies[] = {{1, 0, 2}, wrong};
    EXPECT_THROW(copy_pages(pool.planes(), copies), InvalidArgument);
    pool.expect_copy(0, 1, 0);
  }
  Pool pool;
  for (const std::size_t dim : {0, 1, 2}) {
    TensorView v = pool.v.view();
    --v.shape[dim];
    EXPECT_THROW(copy_pages({pool.k.view(), v}, {}), InvalidArgument);
  }
}

}  // namespace
}  // namespace kvmesh::test
