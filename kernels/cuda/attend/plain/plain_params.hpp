// What the plain kernel is given beside what all families are. One text for the host and for NVRTC.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"

namespace kvmesh::cuda {

/// What elements of float8 pages are multiplied by: `number`, or the row's own factor in
/// `per_token` [pages, kv_heads, page_size], if that is not null; strides in elements.
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
