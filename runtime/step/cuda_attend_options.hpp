// The options of a step's attention on a GPU.
#pragma once

#include <span>

#include "kernels/cuda/attend/cuda_attend.hpp"
#include "runtime/step/backend.hpp"

namespace kvmesh {

/// The options for one kind of layers and batches like `first`. `merges_all`: as StepView's.
cuda::CudaAttend::Options attend_options(const StepOptions& options, const AttentionOptions& kind,
                                         std::span<const BatchEntry> first, bool merges_all);

}  // namespace kvmesh
