// The combine's kernels: one warp per row (512 bytes at dim 128: one 16-byte access per lane).
//
// The products are rounded before they are added, as on the host, and the sources are added in rank
// order, so kAllToAll gives the same bits wherever the partials lie.
#include "comm/combine/nccl/rows.cuh"
#include "core/cuda/device/dependent_launch.cuh"
#include "core/cuda/launch_overlapping.hpp"
#include "core/cuda/load_kernels.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

/// Each kernel begins with it, in all threads: one that ended without waiting would let the next
/// kernel overtake the one before it.
__device__ void begin_launch() {
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
}

/// The row of this warp, among `rows`; -1 past the last.
__device__ int my_row(int rows) {
  const int row =
      static_cast<int>(blockIdx.x) * kWarpsPerBlock + static_cast<int>(threadIdx.x) / kWarp;
  return row < rows ? row : -1;
}

__device__ const float* my_o(const CombineParams& p, int token, int head) {
  return p.tensors.o_row(token, head);
}
__device__ float my_lse(const CombineParams& p, int token, int head) {
  return p.places.takes_part(p.places.rank, token) ? p.tensors.lse_of(token, head) : kNoKeys;
}

template <int Width>
__global__ void pack(const __grid_constant__ CombineParams p) {
  begin_launch();
  const int row = my_row(p.places.tokens * p.places.heads);
  if (row < 0) return;
  const int token = row / p.places.heads;
  const int head = row % p.places.heads;
  if (p.places.owner(token, head) == p.places.rank) return;
  const auto [message, place] = p.places.place_to_send(token, head);
  if (place < 0) return;
  float* o = p.send_buffer + message.offset + std::int64_t{place} * p.row_floats;
  const float* source = my_o(p, token, head);
  for (int d = lane_id() * Width; d < p.dim; d += kWarp * Width) {
    store(o + d, load<Width>(source + d));
  }
  if (lane_id() == 0) o[p.dim] = p.tensors.lse_of(token, head);
}

/// One rank's part in a row of mine.
struct Source {
  const float* o;
  float lse;
};

__device__ Source source_of(const CombineParams& p, const RowPlaces::Block& own, int rank,
                            int token, int head) {
  const int place = p.places.row_in_message(own, rank, token, head);
  if (place < 0) return {nullptr, kNoKeys};
  if (rank == p.places.rank) return {my_o(p, token, head), p.tensors.lse_of(token, head)};
  const float* o =
      p.receive_buffer + p.places.message_from(rank).offset + std::int64_t{place} * p.row_floats;
  return {o, o[p.dim]};
}

/// `token` and `head` are those within my block.
__device__ void store_lse(const CombineParams& p, int token, int head, float lse) {
  if (p.tensors.out_lse == nullptr || lane_id() != 0) return;
  p.tensors.out_lse[p.tensors.out_lse_at(token, head)] = lse;
}

/// A row of mine: within my block, and among all rows.
struct OwnRow {
  int out_token, out_head, token, head;
};

__device__ OwnRow own_row(const RowPlaces::Block& own, int row) {
  const int token = row / own.heads.size;
  const int head = row % own.heads.size;
  return {token, head, own.tokens.begin + token, own.heads.begin + head};
}

template <int Width>
__device__ void store_o(const CombineParams& p, const OwnRow& row, int d,
                        const Floats<Width>& values) {
  store_as(p.tensors.out_dtype, p.tensors.out_o, p.tensors.out_at(row.out_token, row.out_head) + d,
           values);
}

/// The parts of up to `Most` ranks in a row of mine, all in registers.
template <int Width, int Most>
class FewSources {
 public:
  __device__ FewSources(const CombineParams& p, const RowPlaces::Block& own, const OwnRow& row)
      : dim_(p.dim) {
#pragma unroll
    for (int r = 0; r < Most; ++r) {
      sources_[r] =
          r < p.places.ranks ? source_of(p, own, r, row.token, row.head) : Source{nullptr, kNoKeys};
    }
  }

  __device__ void fetch(int d) {
#pragma unroll
    for (int r = 0; r < Most; ++r) {
      if (sources_[r].o != nullptr && d < dim_) o_[r] = load<Width>(sources_[r].o + d);
    }
  }

  /// Computes the weights. Returns the merged LSE.
  __device__ float weigh() {
    float max = kNoKeys;
    for (const Source& source : sources_) max = fmaxf(max, source.lse);
    const float shift = merge_shift(max);
    float total = 0.0f;
    for (const Source& source : sources_) total = __fadd_rn(total, expf(source.lse - shift));
    const float merged = shift + logf(total);
#pragma unroll
    for (int r = 0; r < Most; ++r) weights_[r] = merge_weight(sources_[r].lse, merged);
    return merged;
  }

  /// The weighted sum of what was fetched.
  __device__ Floats<Width> sum() const {
    Floats<Width> sum{};
#pragma unroll
    for (int r = 0; r < Most; ++r) {
      // A rank without a visible key adds nothing, not even 0 * NaN.
      if (sources_[r].lse == kNoKeys) continue;
      for (int k = 0; k < Width; ++k) {
        sum.v[k] = __fadd_rn(sum.v[k], __fmul_rn(weights_[r], o_[r].v[k]));
      }
    }
    return sum;
  }

 private:
  int dim_;
  Source sources_[Most];
  Floats<Width> o_[Most];
  float weights_[Most];
};

/// Up to `Most` ranks: the reads of all LSEs and of the first piece of all O are under way at once,
/// so a row costs the time of one read, where `merge` takes three in turn.
template <int Width, int Most>
__global__ void merge_few(const __grid_constant__ CombineParams p) {
  begin_launch();
  const RowPlaces::Block own = p.places.block(p.places.rank);
  const int index = my_row(own.rows());
  if (index < 0) return;
  const OwnRow row = own_row(own, index);
  if (!p.places.owns(row.token)) return;
  FewSources<Width, Most> sources(p, own, row);
  int d = lane_id() * Width;
  sources.fetch(d);
  store_lse(p, row.out_token, row.out_head, sources.weigh());
  for (; d < p.dim; d += kWarp * Width) {
    if (d >= kWarp * Width) sources.fetch(d);
    store_o(p, row, d, sources.sum());
  }
}

/// Any number of ranks: lane i handles the LSE of rank first + i.
template <int Width>
__global__ void merge(const __grid_constant__ CombineParams p) {
  begin_launch();
  const RowPlaces::Block own = p.places.block(p.places.rank);
  const int index = my_row(own.rows());
  if (index < 0) return;
  const OwnRow row = own_row(own, index);
  if (!p.places.owns(row.token)) return;
  const auto source = [&](int rank) { return source_of(p, own, rank, row.token, row.head); };
  const float merged = merged_lse(p.places.ranks, [&](int rank) { return source(rank).lse; });
  store_lse(p, row.out_token, row.out_head, merged);

  // All lanes go through the loops together, since they exchange the weights.
  const int lane = lane_id();
  for (int begin = 0; begin < p.dim; begin += kWarp * Width) {
    const int d = begin + lane * Width;
    Floats<Width> sum{};
    for (int first = 0; first < p.places.ranks; first += kWarp) {
      const int ranks = min(kWarp, p.places.ranks - first);
      const float lse = lane < ranks ? source(first + lane).lse : kNoKeys;
      const float weight = merge_weight(lse, merged);
      for (int i = 0; i < ranks; ++i) {
        const float w = __shfl_sync(kAllLanes, weight, i);
        const bool has_keys = __shfl_sync(kAllLanes, lse, i) != kNoKeys;
        if (!has_keys || d >= p.dim) continue;
        const Floats<Width> o = load<Width>(source(first + i).o + d);
        for (int k = 0; k < Width; ++k) sum.v[k] = __fadd_rn(sum.v[k], __fmul_rn(w, o.v[k]));
      }
    }
    if (d < p.dim) store_o(p, row, d, sum);
  }
}

/// Returns the LSE that the weights of a row refer to: the merged one, or for kAllReduce the
/// largest.
__device__ float reference_lse(const CombineParams& p, int token, int head) {
  const int row = token * p.places.heads + head;
  if (p.lses_are_maxima) return p.lses[row];
  const auto lse_of = [&](int rank) {
    const float lse = p.lses[std::int64_t{rank} * p.places.tokens * p.places.heads + row];
    return p.places.takes_part(rank, token) ? lse : kNoKeys;
  };
  if (!p.has_weights) return merged_lse(p.places.ranks, lse_of);
  float max = kNoKeys;
  for (int r = lane_id(); r < p.places.ranks; r += kWarp) max = fmaxf(max, lse_of(r));
  return warp_max(max);
}

template <int Width>
__global__ void rescale(const __grid_constant__ CombineParams p) {
  begin_launch();
  const int row = my_row(p.blocks * p.block_rows);
  if (row < 0) return;
  const int owner = row / p.block_rows;
  const int place = row % p.block_rows;
  const std::int64_t floats = std::int64_t{p.block_rows} * (p.dim + (p.has_weights ? 1 : 0));
  float* base = p.send_buffer + owner * floats;
  float* o = base + std::int64_t{place} * p.dim;

  // Rows that fill up a smaller block, and rows without a key here: exactly 0, not 0 * O.
  const RowPlaces::Block block = p.places.block(owner);
  float lse = kNoKeys, weight = 0.0f;
  int token = 0, head = 0;
  if (place < block.rows()) {
    token = block.tokens.begin + place / block.heads.size;
    head = block.heads.begin + place % block.heads.size;
    lse = my_lse(p, token, head);
    weight = merge_weight(lse, reference_lse(p, token, head));
  }
  if (p.has_weights && lane_id() == 0) {
    base[std::int64_t{p.block_rows} * p.dim + place] = weight;
  }
  const bool has_keys = lse != kNoKeys;
  const float* source = my_o(p, token, head);
  for (int d = lane_id() * Width; d < p.dim; d += kWarp * Width) {
    Floats<Width> scaled{};
    if (has_keys) {
      scaled = load<Width>(source + d);
      for (int k = 0; k < Width; ++k) scaled.v[k] = __fmul_rn(weight, scaled.v[k]);
    }
    store(o + d, scaled);
  }
}

template <int Width>
__global__ void finish(const __grid_constant__ CombineParams p) {
  begin_launch();
  const RowPlaces::Block own = p.places.block(p.places.rank);
  const int index = my_row(own.rows());
  if (index < 0) return;
  const OwnRow row = own_row(own, index);
  float lse = reference_lse(p, row.token, row.head);
  float divisor = 1.0f;
  if (p.has_weights) {
    const float total = p.receive_buffer[std::int64_t{p.block_rows} * p.dim + index];
    lse = merge_shift(lse) + logf(total);
    if (total != 0.0f) divisor = total;  // without a key the sums are 0 and stay so
  }
  store_lse(p, row.out_token, row.out_head, lse);
  const float* o = p.receive_buffer + std::int64_t{index} * p.dim;
  for (int d = lane_id() * Width; d < p.dim; d += kWarp * Width) {
    Floats<Width> values = load<Width>(o + d);
    for (int k = 0; k < Width; ++k) values.v[k] = __fdiv_rn(values.v[k], divisor);
    store_o(p, row, d, values);
  }
}

bool is_multiple_of_16(const void* pointer, std::int64_t stride_0, std::int64_t stride_1) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0 && stride_0 % 4 == 0 &&
         stride_1 % 4 == 0;
}

/// Four elements at a time: 16 bytes of floats, 8 of an output's halves.
bool is_wide(const CombineParams& p) {
  return p.dim % 4 == 0 &&
         is_multiple_of_16(p.tensors.o, p.tensors.o_token_stride, p.tensors.o_head_stride) &&
         is_multiple_of_16(p.tensors.out_o, p.tensors.out_token_stride,
                           p.tensors.out_head_stride) &&
         (!p.has_weights || p.block_rows * (p.dim + 1) % 4 == 0);
}

using Kernel = void (*)(CombineParams);

cudaError_t launch(Kernel wide, Kernel narrow, std::int64_t rows, const CombineParams& params,
                   cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  return launch_overlapping(is_wide(params) ? wide : narrow, blocks, kWarpsPerBlock * kWarp, params,
                            stream);
}

std::int64_t own_rows(const CombineParams& p) { return p.places.block(p.places.rank).rows(); }

}  // namespace

cudaError_t load_combine_kernels() {
  return load_kernels(pack<4>, pack<1>, merge_few<4, 2>, merge_few<1, 2>, merge_few<4, 4>,
                      merge_few<1, 4>, merge_few<4, 8>, merge_few<1, 8>, merge<4>, merge<1>,
                      rescale<4>, rescale<1>, finish<4>, finish<1>);
}

cudaError_t launch_pack(const CombineParams& params, cudaStream_t stream) {
  return launch(pack<4>, pack<1>, std::int64_t{params.places.tokens} * params.places.heads, params,
                stream);
}
cudaError_t launch_merge(const CombineParams& params, cudaStream_t stream) {
  const std::int64_t rows = own_rows(params);
  if (params.places.ranks <= 2)
    return launch(merge_few<4, 2>, merge_few<1, 2>, rows, params, stream);
  if (params.places.ranks <= 4)
    return launch(merge_few<4, 4>, merge_few<1, 4>, rows, params, stream);
  if (params.places.ranks <= 8)
    return launch(merge_few<4, 8>, merge_few<1, 8>, rows, params, stream);
  return launch(merge<4>, merge<1>, rows, params, stream);
}
cudaError_t launch_rescale(const CombineParams& params, cudaStream_t stream) {
  return launch(rescale<4>, rescale<1>, std::int64_t{params.blocks} * params.block_rows, params,
                stream);
}
cudaError_t launch_finish(const CombineParams& params, cudaStream_t stream) {
  return launch(finish<4>, finish<1>, own_rows(params), params, stream);
}

}  // namespace kvmesh::cuda
