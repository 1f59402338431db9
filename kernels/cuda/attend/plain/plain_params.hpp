// The plain kernel's own parameters, beside those of all families. One text for the host and for
// NVRTC.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"

namespace kvmesh::cuda {

/// The factors of float8 elements: `number`, or the row's own in `per_token` [pages, kv_heads,
/// page_size] if that is not null; strides in elements.
struct DeviceScale {
  float number;
  const float* per_token;
  std::int64_t page_stride;
  std::int64_t head_stride;
  std::int64_t token_stride;
};

struct DeviceScales {
  DeviceScale k;
  DeviceScale v;
};

struct PlainParams {
  AttendParams attend;
  DeviceScales scales;
};

}  // namespace kvmesh::cuda
