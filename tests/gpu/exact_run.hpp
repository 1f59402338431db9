// A reproducible cache's attention, of one rank of any number, on one GPU.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "comm/combine/nccl/planned_rows.hpp"
#include "kernels/cuda/attend/cuda_attend.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/planned_batch.hpp"
#include "tests/support/exact_case.hpp"

namespace kvmesh::test {

/// The messages of rank `rank` to the owners of rows. Without options: of one rank, all rows in
/// order.
class Messages {
 public:
  Messages(const AttentionShape& shape, std::int64_t tokens, const CombineOptions& options = {},
           int rank = 0, int ranks = 1) {
    const std::int64_t row_floats = exact_row_bytes(shape.v_dim) / 4;
    rows_.plan(
        plan_device_rows({tokens, shape.q_heads, shape.v_dim}, options, row_floats, rank, ranks),
        {}, [] { check(cudaDeviceSynchronize()); });
    const std::vector<float> nans(
        static_cast<std::size_t>(std::max(plan().sent_floats, plan().received_floats)), NAN);
    copy_bytes(memory().send_buffer, nans.data(), static_cast<std::size_t>(plan().sent_floats) * 4);
    copy_bytes(memory().receive_buffer, nans.data(),
               static_cast<std::size_t>(plan().received_floats) * 4);
  }

  const DeviceCombinePlan& plan() const { return rows_.current(); }
  DeviceCombineMemory memory() const { return rows_.memory(); }
  cuda::ExactMessages to_fill() const { return {memory().send_buffer, rows_.places()}; }
  RowPlaces places() const { return rows_.places(); }

  /// As NCCL does.
  void receive(const Messages& from) const {
    const RowMessage out = from.plan().sent[static_cast<std::size_t>(plan().rank)];
    const RowMessage in = plan().received[static_cast<std::size_t>(from.plan().rank)];
    ASSERT_EQ(out.rows, in.rows);
    copy_bytes(memory().receive_buffer + in.offset, from.memory().send_buffer + out.offset,
               static_cast<std::size_t>(in.rows * plan().row_floats) * 4);
  }

 private:
  PlannedRows rows_;
};

/// A case on the device, and its plan.
class DeviceRun {
 public:
  /// `short_rows` 0: those of the batch.
  DeviceRun(AttentionCase& c, const AttentionBatch& batch, const ConstTensorView& q,
            std::int64_t short_rows = 0)
      : shape_(c.spec().shape),
        tokens_(batch.q_indptr.back()),
        q_(q),
        pool_(c.pool()),
        batch_(batch, pages_),
        plan_(kernels(), shape_,
              {.attention = c.spec().options,
               .kinds = cuda::kinds_of(q_.view(), pool_.view()),
               .short_rows = short_rows > 0 ? short_rows
                                            : PlannedBatch::short_rows(
                                                  batch, shape_.q_heads / shape_.kv_heads),
               .exact = true}) {
    cuda::StepView step = batch_.step();
    step.merges_all = true;
    planner_.plan({&plan_, 1}, pages_, step, stream_);
  }

  ExactResult rows() {
    ExactResult result(shape_, tokens_);
    if (result.size_bytes() == 0) return result;
    const Messages all(shape_, tokens_);
    leave_rows(all);
    copy_bytes(result.rows().bytes(0), all.memory().send_buffer, result.size_bytes());
    return result;
  }
  void leave_rows(const Messages& messages) {
    plan_.check(q_.view(), pool_.view());
    plan_.launch(q_.view(), pool_.view(), messages.to_fill(), stream_);
    stream_.wait();
  }
  /// As one rank finishes them.
  void finish(const Partial& out, const ConstTensorView& sinks) {
    const DeviceTensor o(out.o), lse(out.lse);
    std::optional<DeviceTensor> given;
    if (!sinks.empty()) given.emplace(sinks);
    const ConstTensorView there = given ? ConstTensorView(given->view()) : ConstTensorView{};
    plan_.check(q_.view(), pool_.view(), there);
    plan_.launch(q_.view(), pool_.view(), {o.view(), lse.view()}, stream_, there);
    stream_.wait();
    o.download(out.o.data);
    lse.download(out.lse.data);
  }

 private:
  AttentionShape shape_;
  std::int64_t tokens_;
  DeviceTensor q_;
  DevicePool pool_;
  cuda::PageLists pages_;
  PlannedBatch batch_;
  cuda::CudaAttend plan_;
  cuda::AttendPlanner planner_;
  Stream stream_;
};

inline CaseResult finished_by_device(AttentionCase& c) {
  CaseResult out = c.outputs();
  DeviceRun(c, c.batch(), c.q()).finish(c.partial(out), c.sinks());
  return out;
}

inline ExactResult rows_of(AttentionCase& c, const AttentionBatch& batch,
                           std::int64_t short_rows = 0) {
  return DeviceRun(c, batch, c.q(), short_rows).rows();
}

}  // namespace kvmesh::test
