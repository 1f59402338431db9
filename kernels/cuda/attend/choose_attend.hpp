// The choice of the kernel for attend_partial. The case decides which family takes it and which
// constants the kernel has.
//
//   hopper/  decode, speculation, prefill and latent pages, on sm_90a: wgmma, and the copy engine
//            or warps that gather rows
//   mma/     16-bit pages on any chip since sm_80: mma.sync
//   plain/   everything else
//   exact/   reproducible caches, and these alone
#pragma once

#include <string>

#include "kernels/cuda/attend/common/family.hpp"
#include "kernels/jit/program.hpp"
#include "kernels/mods/emit_cuda.hpp"

namespace kvmesh::cuda {

/// Returns the row class of long chunks; ignores `what.rows`. It is a small one where no kernel
/// with tensor cores takes more rows over float8 pages.
int long_row_class(AttendCase what);

/// Returns the kernel of the first family that takes the case; the plain family takes all.
/// @throws InvalidArgument unless pages have tokens: kernels divide by them. Unsupported for exact
/// sums that the exact family does not compute.
AttendVariant choose_attend(const AttendCase& what);

/// Returns the program of a kernel, to be compiled.
jit::Program attend_program(const AttendVariant& variant, const CudaMods& mods,
                            const std::string& architecture);
/// `merges_shared`: of plans that share prefixes.
jit::Program merge_program(int v_dim, bool merges_shared, const std::string& architecture);

}  // namespace kvmesh::cuda
