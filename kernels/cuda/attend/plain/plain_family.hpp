// The family of kernels without tensor cores: any dtype, dims and strides.
#pragma once

#include "kernels/cuda/attend/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& plain_family();

}  // namespace kvmesh::cuda
