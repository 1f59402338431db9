// The sources of the kernels, embedded by the build.
#pragma once

#include <span>

#include "kernels/jit/source_file.hpp"

namespace kvmesh {

std::span<const jit::SourceFile> cuda_kernel_sources();

}  // namespace kvmesh
