// The kernels that the build has compiled, in contrast to those of a KernelStore.
#pragma once

namespace kvmesh::cuda {

/// Loads the kernels of planning, of page copies and of token copies on the current device. Called
/// before the first of them is launched, so that no launch loads one: loading may wait for the
/// device.
/// @throws CudaError.
void load_built_kernels();

}  // namespace kvmesh::cuda
