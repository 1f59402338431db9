// The kernels of planning that do not depend on a model's shape. Each starts on the stream and does
// not wait.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/cuda/plan/params.hpp"

namespace kvmesh::cuda {

/// Loads the kernels on the current device. Called before the first plan, so that no launch loads
/// one.
cudaError_t load_plan_kernels();
cudaError_t load_split_kernel();  // part of it

/// Moves first, then writes; no entry is both read and written.
cudaError_t launch_change_pages(LocalPage* pages, const ListMove* moves, int move_count,
                                const PageChange* changes, int change_count, cudaStream_t stream);

/// Looks up the classes of all candidates in a block mask: TileClass::kMixed where the heads of a
/// group differ. Without a table all are full.
cudaError_t launch_look_up(const PlanCandidates& candidates, const ClassTable& table,
                           cudaStream_t stream);

/// Sets classes[tile >> 2] to tile & 3.
cudaError_t launch_spread(const std::int64_t* tiles, int count, TileClass* classes,
                          cudaStream_t stream);

/// Writes the numbers of the tiles of a class, in order, and their count, both on the device.
/// REQUIRES: `scratch` has select_scratch_bytes(tiles).
std::size_t select_scratch_bytes(int tiles);
cudaError_t launch_select(const TileClass* classes, int tiles, TileClass tile_class,
                          std::int32_t* selected, std::int32_t* count, void* scratch,
                          std::size_t scratch_bytes, cudaStream_t stream);

/// Computes visits, query positions and token slots.
cudaError_t launch_list(const ListParams& params, cudaStream_t stream);

/// Computes tasks and merges (split.hpp).
cudaError_t launch_split(const SplitParams& params, cudaStream_t stream);

}  // namespace kvmesh::cuda
