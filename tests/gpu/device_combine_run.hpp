// One combine of a test case on a GPU: copied there, run, copied back.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <vector>

#include "core/cuda/check.hpp"
#include "core/numbers/half.hpp"
#include "core/owners/unique_handle.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/nccl.hpp"
#include "tests/comm/combine/combine_case.hpp"
#include "tests/gpu/graph.hpp"

namespace kvmesh::test {

/// Floats on the device.
class DeviceFloats {
 public:
  explicit DeviceFloats(const std::vector<float>& values) : count_(values.size()) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, std::max<std::size_t>(count_, 1) * sizeof(float)));
    memory_.reset(memory);
    set(values);
  }
  void set(const std::vector<float>& values) const {
    // cudaMemcpy would return before the values are there, and no other stream waits for it.
    copy_bytes(memory_.get(), values.data(), count_ * sizeof(float));
  }
  std::vector<float> get() const {
    std::vector<float> values(count_);
    check(cudaMemcpy(values.data(), memory_.get(), count_ * sizeof(float), cudaMemcpyDeviceToHost));
    return values;
  }
  void* data() const { return memory_.get(); }

 private:
  std::size_t count_;
  UniqueHandle<void*, cudaFree> memory_;
};

class OwnStream {
 public:
  OwnStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~OwnStream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  cudaStream_t get() const { return stream_; }
  Stream view() const { return {stream_}; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Rank `rank`'s side of a case, on its device. The output is poisoned, and strided by `gap`.
class DeviceCase {
 public:
  DeviceCase(CombineCase& test, int rank, Dtype dtype = Dtype::kFloat32, std::int64_t gap = 0)
      : test_(&test),
        rank_(rank),
        dtype_(dtype),
        gap_(gap),
        held_(&test.partials[static_cast<std::size_t>(rank)]),
        expected_(expected_of(test, rank)),
        o_(held_->o_values),
        lse_(held_->lse_values),
        out_o_(poisoned_o()),
        out_lse_(poisoned_lse()) {}

  Partial partial() const {
    Partial view = held_->view();
    view.o.data = o_.data();
    view.lse.data = lse_.data();
    view.o.device = view.lse.device = kCuda;
    return view;
  }
  CombineOutput output() const {
    const std::int64_t stride = test_->dim + gap_;
    return {.o = {out_o_.data(),
                  dtype_,
                  {expected_.tokens, expected_.heads, test_->dim},
                  {expected_.heads * stride, stride, 1},
                  kCuda},
            .lse = {out_lse_.data(), Dtype::kFloat32, {expected_.tokens, expected_.heads}, kCuda}};
  }
  void poison() {
    out_o_.set(poisoned_o());
    out_lse_.set(poisoned_lse());
  }

  /// The present output; gaps must be unchanged.
  Result result() const {
    const std::vector<float> o = out_o_.get();
    const std::int64_t stride = test_->dim + gap_;
    Result result{{}, out_lse_.get()};
    for (std::int64_t row = 0; row < expected_.tokens * expected_.heads; ++row) {
      for (std::int64_t d = 0; d < stride; ++d) {
        const float value = load_element(o.data(), dtype_, row * stride + d);
        if (d < test_->dim) {
          result.o.push_back(value);
        } else {
          EXPECT_TRUE(std::isnan(value)) << "row " << row << ": wrote into a gap";
        }
      }
    }
    result.clear_rows_of_others(*test_, rank_);
    return result;
  }
  const Expected& expected() const { return expected_; }

 private:
  static constexpr Device kCuda{DeviceKind::kCuda, 0};

  std::vector<float> poisoned_o() const {
    const std::int64_t floats = expected_.tokens * expected_.heads * (test_->dim + gap_);
    return std::vector<float>(static_cast<std::size_t>(floats), std::bit_cast<float>(0xFFFF'FFFF));
  }
  std::vector<float> poisoned_lse() const {
    return std::vector<float>(static_cast<std::size_t>(expected_.tokens * expected_.heads), kNan);
  }

  CombineCase* test_;
  int rank_;
  Dtype dtype_;
  std::int64_t gap_;
  HeldPartial* held_;
  Expected expected_;
  DeviceFloats o_, lse_, out_o_, out_lse_;
};

inline CombineOptions options_of(const CombineCase& test, CombineStrategy strategy) {
  return {.scatter = test.scatter,
          .strategy = test.scatter == Scatter::kOwner ? CombineStrategy::kAuto : strategy,
          .participation = test.participation ? &*test.participation : nullptr};
}

}  // namespace kvmesh::test
