// The family of kernels for few rows on Hopper: 16-bit pages of at least 8 tokens, head dims of 64,
// 128, 192, 256.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& decode_family();
/// The same for latent pages whose rows the copy engine cannot bring: of fewer than 8 tokens, or
/// with gaps.
const AttendFamily& decode_gather_family();

}  // namespace kvmesh::cuda
