// Page tables that lie in the memory of a GPU: when they are read, and which are refused.
#include <gtest/gtest.h>

#include <thread>

#include "core/cuda/device_buffer.hpp"
#include "kvmesh/external_pool.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/graph.hpp"
#include "tests/gpu/held_stream.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;
using Numbers = std::vector<std::int32_t>;

cudaStream_t native(kvmesh::Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

/// Keys are zero, and each value is its page's number, so that a query sees the mean of the
/// numbers.
class ExternalTables : public testing::Test {
 protected:
  static constexpr int kPages = 8, kPageSize = 4, kDim = 64;

  ExternalTables() {
    OwnedTensor k(Dtype::kFloat32, {kPages, 1, kPageSize, kDim}), v = k;
    std::fill_n(static_cast<float*>(k.view().data), k.view().elements(), 0.0f);
    for (std::int64_t i = 0; i < v.view().elements(); ++i) {
      static_cast<float*>(v.view().data)[i] = static_cast<float>(i / (kPageSize * kDim));
    }
    k_.emplace(k.view());
    v_.emplace(v.view());
    pool_.emplace(mesh_, layer(), ExternalPoolOptions{.q_heads = 1});
  }

  KvPool layer() const { return {k_->view(), v_->view()}; }
  PageTables tables() const {
    return {.q_indptr = q_indptr_,
            .kv_lens = on_gpu(kv_lens_),
            .indices = on_gpu(indices_),
            .row_length = 2,
            .device = mesh_.device()};
  }
  static std::span<const std::int32_t> on_gpu(const cuda::DeviceBuffer& buffer) {
    return {buffer.as<const std::int32_t>(), buffer.size_bytes() / sizeof(std::int32_t)};
  }
  float mean_seen(ExternalPlan& plan) {
    OwnedTensor q(Dtype::kFloat32, {1, 1, kDim}), o = q;
    std::fill_n(static_cast<float*>(q.view().data), kDim, 1.0f);
    const DeviceTensor q_there(q.view()), o_there(o.view());
    plan.run(layer(), {.q = q_there.view()}, {.o = o_there.view()});
    mesh_.wait({}, "test");
    o_there.download(o.view().data);
    return o.at(0, 0, 0);
  }

  Mesh mesh_{make_single_communicator(),
             {.threads = 1, .device = DeviceChoice::kCuda, .makes_nccl = false}};
  std::optional<DeviceTensor> k_, v_;
  const Numbers q_indptr_{0, 1};
  cuda::DeviceBuffer kv_lens_ = cuda::upload<std::int32_t>(Numbers{8});
  cuda::DeviceBuffer indices_ = cuda::upload<std::int32_t>(Numbers{2, 3});
  cuda::DeviceBuffer next_ = cuda::upload<std::int32_t>(Numbers{6, 7});
  std::optional<ExternalPool> pool_;
};

// The stream stands still when the call comes, and writes the entries then.
TEST_F(ExternalTables, AreReadAfterTheWorkOfTheirStream) {
  ExternalPlan plan = pool_->plan(tables());
  EXPECT_EQ(mean_seen(plan), 2.5f);
  const cuda::DeviceBuffer first = cuda::upload<std::int32_t>(Numbers{2, 3});
  for (bool replans : {true, false}) {
    HeldStream held;
    check(cudaMemcpyAsync(indices_.data(), (replans ? next_ : first).data(), indices_.size_bytes(),
                          cudaMemcpyDeviceToDevice, native(held.view())));
    std::jthread later([&] {
      std::this_thread::sleep_for(50ms);
      held.release();
    });
    if (replans) {
      pool_->replan(plan, tables(), held.view());
      mesh_.wait(held.view(), "test");
    } else {
      plan = pool_->plan(tables(), {}, held.view());
    }
    EXPECT_EQ(mean_seen(plan), replans ? 6.5f : 2.5f);
  }
}

TEST_F(ExternalTables, AreWaitedForUntilTheDeadline) {
  mesh_.kv_comm().set_deadline(100ms);
  HeldStream held;
  EXPECT_THROW((void)pool_->plan(tables(), {}, held.view()), Timeout);
  held.release();
}

TEST_F(ExternalTables, AreRefusedOnACapturedStreamThatStaysGood) {
  ExternalPlan plan = pool_->plan(tables());
  const Stream stream;
  const Graph graph(stream, [&] {
    EXPECT_THROW((void)pool_->plan(tables(), {}, {stream}), InvalidArgument);
    EXPECT_THROW(pool_->replan(plan, tables(), {stream}), InvalidArgument);
    check(cudaMemsetAsync(next_.data(), 0, next_.size_bytes(), stream));
  });
  graph.launch(stream);
  stream.wait();
  EXPECT_EQ(mean_seen(plan), 2.5f) << "an earlier plan stays good";
}

TEST_F(ExternalTables, AreRefusedOnAnotherDevice) {
  PageTables elsewhere = tables();
  elsewhere.device.index += 1;
  EXPECT_THROW((void)pool_->plan(elsewhere), InvalidArgument);
  if (cuda_device_count() < 2) GTEST_SKIP() << "one GPU: no memory of another";
  const int other = mesh_.device().index == 0 ? 1 : 0;
  const DeviceMemory there({DeviceKind::kCuda, other}, 2 * sizeof(std::int32_t));
  use_device(mesh_.device());
  PageTables mixed = tables();
  mixed.indices = {static_cast<const std::int32_t*>(there.data()), 2};
  EXPECT_THROW((void)pool_->plan(mixed), InvalidArgument);
}

TEST_F(ExternalTables, AreCheckedAsTablesOfTheHost) {
  PageTables short_of = tables();
  short_of.kv_lens = on_gpu(next_).first(1);  // 6 tokens
  ExternalPlan plan = pool_->plan(short_of);
  EXPECT_FLOAT_EQ(mean_seen(plan), (4 * 2 + 2 * 3) / 6.0f);
  const cuda::DeviceBuffer bad = cuda::upload<std::int32_t>(Numbers{2, kPages});
  short_of.indices = on_gpu(bad);
  EXPECT_THROW(pool_->replan(plan, short_of), InvalidArgument);
  EXPECT_FLOAT_EQ(mean_seen(plan), (4 * 2 + 2 * 3) / 6.0f);
}

}  // namespace
}  // namespace kvmesh::test
