// A family is one design of a kernel for attend_partial: the case that it is given, and the kernel
// that it chooses. attend/choose_attend.hpp lists the families.
#pragma once

#include <optional>
#include <string>

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/plan/piece_rule.hpp"
#include "kernels/jit/module.hpp"
#include "kernels/jit/program.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// The properties of the tensors that kernels depend on.
struct TensorKinds {
  Dtype q = Dtype::kBFloat16;
  Dtype pool = Dtype::kBFloat16;
  /// Rows of q begin at multiples of 16 bytes.
  bool q_vectors = true;
  /// Rows of the pool begin at multiples of 16 bytes.
  bool pool_vectors = true;
  /// Both halves of the pool are [pages, kv_heads, page_size, dim] without gaps; of latent pages
  /// the keys are.
  bool pool_contiguous = true;
  /// In both halves heads are a whole number of rows or of 128 bytes apart, and tokens and pages
  /// lie forward, as in every layout of engines: the copy engine can take a page of a head as a
  /// box.
  bool pool_boxes = true;
  /// Values are the first elements of the keys' rows.
  bool latent = false;
  /// Rows of float8 pages have scales of their own, rather than one for each head or for all.
  bool row_scales = false;
  /// Scales of neighbours lie together; those of four tokens begin at multiples of 16 bytes.
  bool scale_vectors = true;
  bool has_sinks = false;
  friend auto operator<=>(const TensorKinds&, const TensorKinds&) = default;
};
TensorKinds kinds_of(const ConstTensorView& q, const ConstKvPool& pool,
                     const ConstTensorView& sinks = {});

/// Shared memory: the most that a thread block may have, and that of an SM.
struct SharedLimits {
  int block_bytes = 227 * 1024;
  int multiprocessor_bytes = 228 * 1024;
};

/// One case: the attention that a kernel computes, and the device.
struct AttendCase {
  AttentionShape shape;  ///< shape of the tensors
  TensorKinds kinds{};
  bool fold_scale = true;     ///< no score mod and scale > 0
  bool head_classes = false;  ///< a block mask has lists for each head
  int rows = 16;              ///< most rows per thread block: a row class
  bool row_tokens = false;    ///< rows are of several sequences: AttendParams::row_tokens
  bool exact = false;         ///< sums whose bits do not depend on their order
  std::string architecture = "sm_90a";
  SharedLimits limits{};

  /// The shape as it is planned.
  int group() const;
};

/// Returns the shape as it is planned: a group of more query heads than a thread block has rows is
/// divided into equal blocks of heads, each planned as if its kv head were its own. Prime groups
/// stay whole.
AttentionShape planned_shape(const AttentionShape& shape);

class AttendFamily;

/// The kernel for a case, and its launch.
struct AttendVariant {
  const AttendFamily* family = nullptr;
  std::string name{};    ///< name of the family
  std::string source{};  ///< the file that holds the kernel
  const char* kernel = nullptr;
  jit::Constants constants{};
  int threads = 0;
  int shared_bytes = 0;
  int blocks_per_multiprocessor = 1;
  int tile_keys = 64;  ///< keys per step of a thread block
  PieceRule rule{};
  /// The kernel may start before the previous one ends, and waits for it before it reads anything
  /// but the plan.
  bool overlaps = false;
};

class AttendFamily {
 public:
  virtual ~AttendFamily() = default;
  /// Returns the kernel for a case, or nothing if this family cannot compute it.
  virtual std::optional<AttendVariant> choose(const AttendCase& what) const = 0;
  /// Launches a kernel that `choose` returned. `params` are those of all families for `pool`.
  virtual void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
                      const ConstKvPool& pool) const;
};

/// The row classes: row counts of thread blocks. The last is for long chunks.
inline constexpr int kRowClasses[] = {8, 16, 32, 64, 128};

/// Returns the row class for sequences with at most `rows` rows.
int row_class_of(std::int64_t rows, const AttentionShape& shape);

/// Sets the constants of every family. For the families' own use.
jit::Constants attend_constants(const AttendCase& what);

}  // namespace kvmesh::cuda
