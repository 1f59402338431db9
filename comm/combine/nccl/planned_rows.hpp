// The device memory of a combine's plan. Only for sources that are built with CUDA.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

#include "comm/combine/nccl/device_combine_plan.hpp"
#include "core/cuda/device_array.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// The addresses of a combine's device memory.
struct DeviceCombineMemory {
  const void* table;      // what `device_table` gives
  float* send_buffer;     // of sent_floats, or reduced_floats
  float* receive_buffer;  // of received_floats, or block_floats
  float* lses;  // of the reducing strategies: [ranks][rows] gathered (or [rows]: maxima), then
                // [rows]: my own
};

/// A plan, and its memory on the current device, which grows and never shrinks.
class PlannedRows {
 public:
  /// Takes `next` in place of the plan before: makes room, and uploads the table on `stream`. Calls
  /// `wait`, which waits for the stream, where CUDA may do so without a deadline.
  /// @throws as `wait`, and leaves no plan then.
  void plan(DeviceCombinePlan next, Stream stream, const std::function<void()>& wait);

  bool is_planned() const { return is_planned_; }
  /// REQUIRES: a plan, as for what follows.
  const DeviceCombinePlan& current() const { return plan_; }
  DeviceCombineMemory memory() const {
    return {table_.data(), send_.data(), receive_.data(), lses_.data()};
  }
  RowPlaces places() const { return row_places(plan_, table_.data()); }

  /// Changes whenever a plan makes the graphs captured so far invalid.
  std::uint64_t generation() const { return generation_; }
  std::size_t workspace_bytes() const {
    return table_.size_bytes() + send_.size_bytes() + receive_.size_bytes() + lses_.size_bytes();
  }

 private:
  bool makes_other_messages(const DeviceCombinePlan& next) const;
  void reserve(Stream stream);
  void upload(Stream stream, const std::function<void()>& wait);

  DeviceCombinePlan plan_;
  bool is_planned_ = false;
  std::uint64_t generation_ = 0;
  std::vector<std::byte> host_table_;  // as uploaded
  cuda::DeviceArray<std::byte> table_;
  cuda::DeviceArray<float> send_;
  cuda::DeviceArray<float> receive_;
  cuda::DeviceArray<float> lses_;
};

}  // namespace kvmesh
