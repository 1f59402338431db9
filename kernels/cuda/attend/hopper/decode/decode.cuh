// attend_partial for few rows on Hopper: decode and speculation, float16 or bfloat16 pages, head
// dims of 64 to 256, multiples of 32, up to 32 packed query rows.
//
// Keys are the rows of the products and queries their columns, so that 8 query rows need no padding
// to 64 and few registers:
//
//   S^T [64 keys, N rows]  = K Q^T        K and Q along their rows
//   O^T [v_dim, N rows]   += V^T P^T      V across its rows, P^T by way of shared memory
//
// A producer warp claims pieces and copies queries, keys and values into rings of shared memory by
// the copy engine: one box per page and head. Four warps compute. A column of scores and of outputs
// is in the same threads, so rescaling the outputs needs no exchange. The maximum of a column is
// over keys and goes through shared memory once per tile.
//
//   bytes per key and kv head: (k_dim + v_dim) * 2, each read once. An SM of an H200 gets 35 bytes
//   per ns at 1 us of latency, so 35 KB must be under way: 3 thread blocks * 64 KB keep more than
//   that. A tile of 64 keys of dim 128 is 32 KB, which take 930 ns of the memory; the products take
//   300 of the tensor cores' 1,700 cycles in that time.
//
// Sources: online softmax (Milakov and Gimelshein, 2018); keys as rows (TensorRT-LLM's XQA).
#pragma once

#include "kernels/cuda/attend/hopper/decode/decode_math.cuh"

namespace kvmesh::cuda {

class DecodeHalf : public DecodeMath<DecodeHalf> {
 public:
  __device__ DecodeHalf(const HopperParams& params, const DecodeShared& shared)
      : DecodeMath(params, shared) {}

  static constexpr bool kDescribesTiles = true;
  static constexpr bool kNeighbours = false;

  __device__ void begin(const DeviceTask& /*task*/, int /*slot*/) {}

  __device__ void multiply_keys(const Tile& tile, float (&s)[kRows / 2]) const {
    if constexpr (kGathers) fence_proxy_async();  // what threads have gathered
    const std::uint64_t keys = kImageK.operand(shared_.keys(tile.stage));
    const std::uint64_t rows = kImageQ.operand(shared_.queries(tile.slot));
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDimK / 16; ++k) {
      wgmma<Rows::kAlongK>(s, keys + kImageK.further(k * 16), rows + kImageQ.further(k * 16),
                           k > 0);
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
    wgmma_tie(s);
  }

  __device__ void softmax(float (&s)[kRows / 2], const Tile& tile) {
    weigh(s, s);
    publish(tile, s);
  }

  __device__ void add_values(const Tile& tile) {
    mbarrier_wait(shared_.values_full(tile.stage), tile.parity);
    const std::uint64_t values = kImageV.operand(shared_.values(tile.stage));
    const std::uint64_t weights = kImageWeights.operand(shared_.weights());
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kTileKeys / 16; ++k) {
#pragma unroll
      for (int m = 0; m < kDimTiles; ++m) {
        wgmma<Rows::kAcrossK>(o_[m], values + kImageV.further(m * kTileStep, k * 2),
                              weights + kImageWeights.further(k * 16), true);
      }
    }
    wgmma_commit_group();
    wgmma_wait_group<0>();
#pragma unroll
    for (int m = 0; m < kDimTiles; ++m) wgmma_tie(o_[m]);
    if (lane() == 0) mbarrier_arrive(shared_.values_empty(tile.stage));
  }

  __device__ float output_factor(int /*j*/, int /*c*/) const { return 1.0f; }
};

}  // namespace kvmesh::cuda

/// Grid: any size up to that of the tasks' array, since pieces are claimed. Block: kTile.threads().
/// Dynamic shared memory: kTile.bytes(). May be launched to overlap its predecessor, unless that is
/// a kernel of the plan: this kernel reads the plan before it waits for its predecessor.
extern "C" __global__ void __launch_bounds__(kvmesh::cuda::kTile.threads(), kvmesh::kBlocksPerSm)
    kvmesh_attend_decode(const __grid_constant__ kvmesh::cuda::HopperParams params) {
  extern __shared__ __align__(1024) char kvmesh_shared[];
  kvmesh::cuda::run_decode<kvmesh::cuda::DecodeHalf>(params, kvmesh_shared);
}
