#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

/// Latent pages (MLA) and more rows than the decode kernel takes, on sm_90a.
const AttendFamily& latent_family();
/// The same for pages whose rows the copy engine cannot bring: of fewer than 8 tokens, or with
/// gaps.
const AttendFamily& latent_gather_family();

}  // namespace kvmesh::cuda
