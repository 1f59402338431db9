// A layer that a GPU refuses has written nothing.
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "core/cuda/device_buffer.hpp"
#include "kvmesh/external_pool.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::test {
namespace {

using Numbers = std::vector<std::int32_t>;

constexpr std::int64_t kFourGiB = std::int64_t{1} << 32;

/// A pool of two pages, and a step that writes its only token to the first. Memory beyond the first
/// page is never touched.
class RefusedLayer : public testing::Test {
 protected:
  static constexpr std::int64_t kTokens = 4, kDim = 64;
  static constexpr std::int64_t kPageFloats = kTokens * kDim;

  /// [2, 1, kTokens, kDim] float32, of pages this many bytes apart.
  KvPool pool(std::int64_t page_bytes) {
    const auto half = [&](std::optional<cuda::DeviceBuffer>& memory) {
      memory.emplace(static_cast<std::size_t>(page_bytes + kPageFloats * 4));
      const std::vector<float> zeros(kPageFloats);
      copy_bytes(memory->data(), zeros.data(), zeros.size() * sizeof(float));
      return TensorView(memory->data(), Dtype::kFloat32, {2, 1, kTokens, kDim},
                        {page_bytes / 4, kPageFloats, kDim, 1}, mesh_.device());
    };
    return {half(k_), half(v_)};
  }
  ExternalPlan plan(ExternalPool& pool) {
    return pool.plan({.q_indptr = q_indptr_,
                      .kv_lens = kv_lens_,
                      .indptr = indptr_,
                      .indices = indices_,
                      .appended = appended_});
  }
  void run(ExternalPlan& plan, const KvPool& pool) {
    plan.run(pool, {.q = token_.view(), .k = token_.view(), .v = token_.view()}, {.o = o_.view()});
  }
  /// True if the first page has a token.
  bool is_written(const KvPool& pool) {
    mesh_.wait({}, "test");
    std::vector<float> page(kPageFloats);
    for (const TensorView* half : {&pool.k, &pool.v}) {
      copy_bytes(page.data(), half->data, page.size() * sizeof(float));
      if (std::ranges::any_of(page, [](float value) { return value != 0; })) return true;
    }
    return false;
  }

  Mesh mesh_{make_single_communicator(),
             {.threads = 1, .device = DeviceChoice::kCuda, .makes_nccl = false}};
  const Numbers q_indptr_{0, 1}, kv_lens_{1}, indptr_{0, 1}, indices_{0}, appended_{1};
  std::optional<cuda::DeviceBuffer> k_, v_;
  OwnedTensor host_ = [] {
    OwnedTensor ones(Dtype::kFloat32, {1, 1, kDim});
    std::fill_n(static_cast<float*>(ones.view().data), kDim, 1.0f);
    return ones;
  }();
  const DeviceTensor token_{host_.view()}, o_{host_.view()};
};

// Attention does not take such pages, but append does.
TEST_F(RefusedLayer, HasNotAppendedToPagesTooFarApart) {
  const KvPool far = pool(kFourGiB);
  ExternalPool external(mesh_, far, {.q_heads = 1});
  ExternalPlan step = plan(external);
  EXPECT_THROW(run(step, far), InvalidArgument);
  EXPECT_FALSE(is_written(far));
  step.append(far, token_.view(), token_.view());
  EXPECT_TRUE(is_written(far)) << "the test sees what a layer writes";
}

TEST_F(RefusedLayer, IsNotOneOfPagesJustNearEnough) {
  const KvPool near = pool(kFourGiB - 16);
  ExternalPool external(mesh_, near, {.q_heads = 1});
  ExternalPlan step = plan(external);
  run(step, near);
  EXPECT_TRUE(is_written(near));
  float o = 0;
  mesh_.wait({}, "test");
  copy_bytes(&o, o_.view().data, sizeof o);
  EXPECT_EQ(o, 1.0f) << "the mean of one value";
}

}  // namespace
}  // namespace kvmesh::test
