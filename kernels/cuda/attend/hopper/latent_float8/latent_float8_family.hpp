#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

/// Latent float8 pages (MLA) and up to 64 rows, on sm_90a.
const AttendFamily& latent_float8_family();

}  // namespace kvmesh::cuda
