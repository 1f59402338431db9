// The family of kernels without tensor cores: any dtype, dims and strides.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"
#include "kernels/cuda/attend/plain/plain_params.hpp"

namespace kvmesh::cuda {

const AttendFamily& plain_family();

/// Returns the scales of a pool in the kernels' form.
DeviceScales device_scales(const ConstKvPool& pool);

}  // namespace kvmesh::cuda
