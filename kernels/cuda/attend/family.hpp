// Which kernel computes attend_partial. A family is one design of such a kernel; what a case asks
// for decides which family takes it and how the kernel is cut.
//
//   hopper/  decode and speculation, and prefill, on sm_90a: wgmma and the copy engine
//   mma/     16-bit pages on any chip since sm_80: mma.sync
//   plain/   everything else
#pragma once

#include <optional>
#include <string>

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/jit/module.hpp"
#include "kernels/jit/program.hpp"
#include "kernels/mods/emit_cuda.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// What kernels depend on of the tensors.
struct TensorKinds {
  Dtype q = Dtype::kBFloat16;
  Dtype pool = Dtype::kBFloat16;
  /// Rows of q begin at multiples of 16 bytes.
  bool q_vectors = true;
  /// Rows of the pool do.
  bool pool_vectors = true;
  /// Both halves of the pool are [pages, kv_heads, page_size, dim] without gaps; of latent pages
  /// the keys are.
  bool pool_contiguous = true;
  /// Values are the first elements of the keys' rows.
  bool latent = false;
  /// Rows of float8 pages have scales of their own.
  bool row_scales = false;
  /// Scales of neighbours lie together, those of four tokens at multiples of 16 bytes.
  bool scale_vectors = true;
  bool has_sinks = false;
  friend auto operator<=>(const TensorKinds&, const TensorKinds&) = default;
};
TensorKinds kinds_of(const ConstTensorView& q, const ConstKvPool& pool,
                     const ConstTensorView& sinks = {});

/// Does every row (of the last dimension) begin at a multiple of 16 bytes?
bool begins_at_16_bytes(const ConstTensorView& view);

/// The largest of a device's thread blocks' shared memory, and what an SM has of it.
struct SharedLimits {
  int block_bytes = 227 * 1024;
  int multiprocessor_bytes = 228 * 1024;
};

/// What a kernel is asked to compute, and where.
struct AttendCase {
  AttentionShape shape;  ///< of the tensors
  TensorKinds kinds{};
  bool fold_scale = true;     ///< no score mod and scale > 0
  bool head_classes = false;  ///< a block mask has lists for each head
  int rows = 16;              ///< of a thread block, at the most: a row class
  std::string architecture = "sm_90a";
  SharedLimits limits{};

  /// As planned.
  int group() const;
};

/// The shape as it is planned: a group of more query heads than a thread block has rows is cut into
/// equal blocks of heads, each of them planned as if its kv head were its own. Prime groups stay
/// whole.
AttentionShape planned_shape(const AttentionShape& shape);

class AttendFamily;

/// The kernel for a case, and how it is launched.
struct AttendVariant {
  const AttendFamily* family = nullptr;
  std::string name{};    ///< of the family
  std::string source{};  ///< the file that holds the kernel
  const char* kernel = nullptr;
  jit::Constants constants{};
  int threads = 0;
  int shared_bytes = 0;
  int blocks_per_multiprocessor = 1;
  int tile_keys = 64;  ///< keys that a thread block takes at a time
  /// The longest share of a thread block that is one piece: more where partials are large.
  int one_piece_tiles = 32;
  /// It may start before the previous kernel ends, and waits for it before it reads anything but
  /// the plan.
  bool overlaps = false;
};

class AttendFamily {
 public:
  virtual ~AttendFamily() = default;
  /// The kernel for a case; nothing where this family cannot compute it.
  virtual std::optional<AttendVariant> choose(const AttendCase& what) const = 0;
  /// Launches a kernel that `choose` chose. `params` is what all families are given of `pool`.
  virtual void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
                      const ConstKvPool& pool) const;
};

/// The row counts that thread blocks come in. The last is for long chunks.
inline constexpr int kRowClasses[] = {8, 16, 32, 64, 128};

/// Rows of the thread blocks for sequences with no more than `rows` rows: a row class.
int row_class_of(std::int64_t rows, const AttentionShape& shape);
/// That of long chunks. Over float8 pages tensor cores take few rows at a time.
int long_row_class(const AttentionShape& shape, Dtype pool);

/// The kernel of the first family that takes the case; the plain family takes all.
/// @throws InvalidArgument unless pages have tokens: kernels divide by them.
AttendVariant choose_attend(const AttendCase& what);

/// What to compile for it.
jit::Program attend_program(const AttendVariant& variant, const CudaMods& mods,
                            const std::string& architecture);
/// Has the chip launches that overlap the one before (Hopper and later)?
bool can_overlap_launches(const std::string& architecture);
jit::Program merge_program(int v_dim, const std::string& architecture);

/// The constants of every family. (For the families.)
jit::Constants attend_constants(const AttendCase& what);

}  // namespace kvmesh::cuda
