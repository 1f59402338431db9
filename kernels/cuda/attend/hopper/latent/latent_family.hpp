#pragma once

#include "kernels/cuda/attend/family.hpp"

namespace kvmesh::cuda {

/// Latent pages (MLA) and more rows than the decode kernel takes, on sm_90a.
const AttendFamily& latent_family();

}  // namespace kvmesh::cuda
