// The products of the latent kernel for float8 pages. While the tensor cores multiply a part of a
// tile, the next one is converted: the parts' registers take turns.
#pragma once

#include "kernels/cuda/attend/hopper/float8_rows.cuh"
#include "kernels/cuda/attend/hopper/instructions/wgmma.cuh"
#include "kernels/cuda/attend/hopper/latent_float8/latent_float8_shared.cuh"

namespace kvmesh::cuda {

/// A warp's part in the products of a thread block: the scores of keys 16 * warp .. and the outputs
/// of 16 of each 64 of its team's dims.
class LatentFloat8Products {
 public:
  /// Blocks of 64 dims of a team's outputs.
  static constexpr int kDimTiles = kDimV / 64 / kTeams;
  using Scores = float[kRows / 2];
  using Outputs = float[kDimTiles][kRows / 2];

  __device__ explicit LatentFloat8Products(const LatentFloat8Shared& shared) : shared_(shared) {}

  /// The first of a warp's dims of block `m`.
  __device__ static int first_dim(int warp, int m) {
    return (warp / kTeamWarps * kDimTiles + m) * 64 + warp % kTeamWarps * 16;
  }

  // Loops over the parts, which must be unrolled: they have no other end than their count, since
  // some kernels keep a loop with a `break`. A template for each part, which calls the next, is
  // unrolled in any case, but the kernel takes half as long again to compile.

  /// s = K Q^T. REQUIRES: the stage is full.
  __device__ void multiply_keys(int stage, Scores& s) const {
    Part parts[2];
    load_keys(stage, 0, parts[0]);
#pragma unroll
    for (int part = 0; part < kKeyParts; ++part) {
      multiply_part(part, parts[part % 2], s);
      if (part + 1 < kKeyParts) {
        if (part > 0) wgmma_wait_group<1>();  // the registers of the part before are free
        load_keys(stage, part + 1, parts[(part + 1) % 2]);
      }
    }
    wgmma_wait_group<0>();
    wgmma_tie(s);
  }

  /// o += V^T P^T.
  __device__ void add_values(int stage, Outputs& o) const {
    const int thread = opaque(threadIdx.x);  // else the address is in a register all the while
    const std::uint32_t rows =
        shared_.values(stage) + kImageV.unit(thread % 32, first_dim(thread / 32, 0) / 16);
    Part parts[2];
    load_values(rows, 0, parts[0]);
#pragma unroll
    for (int part = 0; part < kValueParts; ++part) {
      add_part(stage, part, parts[part % 2], o);
      if (part + 1 < kValueParts) {
        if (part > 0) wgmma_wait_group<1>();
        load_values(rows, part + 1, parts[(part + 1) % 2]);
      }
    }
    wgmma_wait_group<0>();
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) wgmma_tie(o[m]);
  }

 private:
  /// Products of a part, each over 16 dims of keys or over 16 keys of values.
  static constexpr int kSteps = kRows < 64 ? 4 : 2;
  using Part = std::uint32_t[kSteps][4];
  static constexpr int kTeamSteps = kTeamKeys / 16;

  static constexpr int kKeyParts = kDimK / 16 / kSteps;
  static constexpr int kValueParts = kDimTiles * kTileKeys / 16 / kSteps;

  __device__ static int lane() { return threadIdx.x % 32; }

  /// Starts the products of a part of the keys.
  __device__ void multiply_part(int part, const Part& keys, Scores& s) const {
    const std::uint64_t queries = kImageQ.operand(shared_.queries());
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int k = part * kSteps + i;
      wgmma_float16(s, keys[i], queries + kImageQ.further(k * 16), k > 0);
    }
    wgmma_commit_group();
  }

  /// The same with values.
  __device__ void add_part(int stage, int part, const Part& values, Outputs& o) const {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int k = step_of(part) + i;
      const std::uint64_t weights = kImageWeights.operand(shared_.weights(stage, k / kTeamSteps));
      wgmma_float16(o[dims_of(part)], values[i],
                    weights + kImageWeights.further(k % kTeamSteps * 16), true);
    }
    wgmma_commit_group();
  }

  /// The address of unit `first` + u of a row, from that of its unit u, where no unit number has a
  /// bit in both: then units are exchanged within their atom as if u were 0.
  __device__ static std::uint32_t further_unit(const KvImage& image, std::uint32_t unit_u,
                                               int first) {
    const int units = image.atom_units();
    return (unit_u ^ static_cast<std::uint32_t>(first % units * 16)) +
           static_cast<std::uint32_t>(first / units * image.atom_bytes());
  }

  __device__ void load_keys(int stage, int part, Part& to) const {
    // Matrices: rows 0 .. 7 and 8 .. 15 of this warp, 16 dims; the same, the next 16.
    constexpr int kValueUnits = kDimV / 16;
    const int row = threadIdx.x / 32 * 16 + lane() % 16;
    const std::uint32_t values = shared_.values(stage) + kImageV.unit(row, lane() / 16);
    const std::uint32_t rest = shared_.rest(stage) + kImageRest.unit(row, lane() / 16);
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) {
      const int first = part * kSteps + i;
      std::uint32_t bytes[4];
      ldmatrix_x4(bytes, first < kValueUnits ? further_unit(kImageV, values, first)
                                             : further_unit(kImageRest, rest, first - kValueUnits));
      widen_keys(bytes[0], bytes[1], to[i]);
      widen_keys(bytes[2], bytes[3], to[i + 1]);
    }
  }

  // The parts of the values: all keys of a block of dims, then of the next.
  static constexpr int dims_of(int part) { return part * kSteps / (kTileKeys / 16); }
  static constexpr int step_of(int part) { return part * kSteps % (kTileKeys / 16); }
  static_assert(kDimTiles == 1 || kDimTiles * 64 % kImageV.atom_elements() == 0);

  /// `rows` is the address of this warp's first dims in row `lane`.
  __device__ static void load_values(std::uint32_t rows, int part, Part& to) {
    // Matrices: 8 keys each, of this warp's 16 dims.
    const std::uint32_t dims = further_unit(kImageV, rows, dims_of(part) * 4);
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) {
      std::uint32_t bytes[4];
      ldmatrix_x4_trans(bytes, dims + kImageV.bytes((step_of(part) + i) * 16));
      widen_values(bytes[0], bytes[1], to[i]);
      widen_values(bytes[2], bytes[3], to[i + 1]);
    }
  }

  const LatentFloat8Shared& shared_;
};

}  // namespace kvmesh::cuda
