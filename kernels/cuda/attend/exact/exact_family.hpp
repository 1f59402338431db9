// The kernels of reproducible caches: any dtype, dims and strides, as the plain family.
#pragma once

#include "kernels/cuda/attend/family.hpp"

namespace kvmesh::cuda {

const AttendFamily& exact_family();

/// The program of the kernel kvmesh_merge_exact, whose rows have outputs of `v_dim` elements.
jit::Program exact_merge_program(int v_dim, const std::string& architecture);

}  // namespace kvmesh::cuda
