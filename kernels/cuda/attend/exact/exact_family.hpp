// The family of kernels of exact sums, for reproducible caches: the pages of
// gpu_has_exact_attention, whose rows begin at multiples of 16 bytes.
#pragma once

#include "kernels/cuda/attend/common/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& exact_family();

/// Returns the program of the merge of exact rows.
jit::Program exact_merge_program(int v_dim, const std::string& architecture);

}  // namespace kvmesh::cuda
