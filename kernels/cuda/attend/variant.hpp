// Which kernel computes attend_partial: what it is compiled for, and how its thread blocks are cut.
#pragma once

#include <string>

#include "kernels/cuda/attend/mma/tile.hpp"
#include "kernels/jit/program.hpp"
#include "kernels/mods/emit_cuda.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// What of the tensors the kernels depend on.
struct TensorKinds {
  Dtype q = Dtype::kBFloat16;
  Dtype pool = Dtype::kBFloat16;
  /// Rows of q begin at multiples of 16 bytes.
  bool q_vectors = true;
  /// Rows of the pool do.
  bool pool_vectors = true;
  friend auto operator<=>(const TensorKinds&, const TensorKinds&) = default;
};
TensorKinds kinds_of(const ConstTensorView& q, const ConstKvPool& pool);

/// Does every row (of the last dimension) begin at a multiple of 16 bytes?
bool begins_at_16_bytes(const ConstTensorView& view);

/// The largest of a device's thread blocks' shared memory, and what an SM has of it.
struct SharedLimits {
  int block_bytes = 227 * 1024;
  int multiprocessor_bytes = 228 * 1024;
};

/// Everything that a compiled attention kernel is specialised for.
struct AttendVariant {
  AttentionShape shape;
  TensorKinds kinds;
  bool fold_scale = true;     ///< no score mod and scale > 0
  bool head_classes = false;  ///< a block mask has lists for each head
  bool tensor_cores = true;
  AttendTile tile{};  ///< of the tensor-core kernel
  int blocks_per_multiprocessor = 1;

  int threads() const { return tensor_cores ? tile.threads() : 128; }
  int shared_bytes() const {
    return tensor_cores ? AttendShared{tile, shape.k_dim, shape.v_dim}.bytes() : 0;
  }
  const char* kernel_name() const { return tensor_cores ? "kvmesh_attend" : "kvmesh_attend_plain"; }
};

/// The row counts that thread blocks come in. The last is for long chunks.
inline constexpr int kRowClasses[] = {16, 32, 64, 128};

/// Rows of the thread blocks for sequences with no more than `rows` rows: a row class.
int row_class_of(std::int64_t rows, const AttentionShape& shape);

/// Picks the tile for a row class, or the plain kernel where the tensor cores' cannot run.
/// @throws InvalidArgument unless pages have tokens: the kernel divides by them.
AttendVariant choose_attend(const AttentionShape& shape, const TensorKinds& kinds, bool fold_scale,
                            int row_class, const SharedLimits& limits);

/// What to compile for it. `architecture` is "sm_90a" or such.
jit::Program attend_program(const AttendVariant& variant, const CudaMods& mods,
                            const std::string& architecture);
/// Has the chip launches that overlap the one before (Hopper and later)?
bool can_overlap_launches(const std::string& architecture);
jit::Program merge_program(const std::string& architecture);

}  // namespace kvmesh::cuda
