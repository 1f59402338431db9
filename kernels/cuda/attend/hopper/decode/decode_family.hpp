// The family of kernels for few rows on Hopper: 16-bit pages of at least 8 tokens, head dims of 64,
// 128, 192, 256.
#pragma once

#include "kernels/cuda/attend/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& decode_family();

}  // namespace kvmesh::cuda
