// The warps of the prefill kernel that bring queries over float8 pages, and turn tiles of keys and
// values into the float16 images that the tensor cores read.
//
//   float8 tile    KvImage of bytes: 16 elements a unit         the copy engine brings it
//   float16 tile   KvImage: units 2 u and 2 u + 1 of a row      converted from its unit u
//
// Eight lanes have a unit of eight rows, whose places lie in different banks in both images.
//
//   per tile of 128 keys of dim 128: 32,768 elements, 64 a cycle of an SM: 512 cycles. 32 KB are
//   read and 64 KB written, 128 bytes a cycle: 768 cycles of shared memory, of which the products
//   of two consumers take 1,280 and the copy engine 256.
#pragma once

#include "kernels/cuda/attend/common/query_scale.cuh"
#include "kernels/cuda/attend/hopper/prefill/prefill_producer.cuh"

namespace kvmesh::cuda {

/// kQueryWarps warps; this is one thread's part.
class PrefillConverter {
 public:
  __device__ PrefillConverter(const HopperParams& params, const PrefillShared& shared)
      : p_(params.attend), shared_(shared) {}

  __device__ void run(int thread) {
    thread_ = thread;
    wait_for_inputs(p_);
    for (int n = 0;; ++n) {
      const int slot = n % kPieceRing;
      mbarrier_wait(shared_.task_full(slot), n / kPieceRing % 2);
      const DeviceTask& task = shared_.task(slot);
      if (task.rows == 0) return;
      mbarrier_wait(shared_.queries_empty(), n % 2 ^ 1);
      const int tiles =
          PrefillStream::tiles_of(task);  // a task without keys may be gone afterwards
      load_queries(task, slot);
      exponent_ = kLeastExponent;
      for (int tile = 0; tile < tiles; ++tile) {
        convert_keys(task.keys - tile * kPrefillKeys);
        // Values of the tile before, and after the last keys those of their own tile.
        const int end = tile + 1 == tiles ? tiles : tile;
#pragma unroll 1
        for (int values = max(tile - 1, 0); values < end; ++values) {
          convert_values(task.keys - values * kPrefillKeys);
        }
      }
    }
  }

 private:
  /// Exponents of scales, in a float's bits: one that leaves room for the factors of weights; and
  /// how far a scale may be below the largest of its tile. Weights of up to 2^8 then become less
  /// than 2^15, and a weight of 1 at least 2^-10, where float16 has all of its bits.
  static constexpr std::uint32_t kLeastExponent = 6;
  static constexpr std::uint32_t kWidth = 16;

  __device__ static int lane() { return threadIdx.x % 32; }
  __device__ int warp() const { return thread_ / 32; }

  // ---- Queries ----

  /// Elements of 16 bits are copied as they are, and scaled by the warps that read them.
  __device__ void load_queries(const DeviceTask& task, int slot) const {
    if constexpr (kQueryType != Dtype::kFloat32) {
      PrefillQueries::copy<kQueryType>(p_, shared_, task, slot, thread_);
    } else {
#pragma unroll 1
      for (int r = warp() * kRowsAtOnce; r < kTile.rows(); r += kQueryWarps * kRowsAtOnce) {
        load_row(task, r + lane() / kRowLanes);
      }
      PrefillQueries::arrive(shared_, slot);
    }
  }

  /// Lanes that share a row of float32, 8 elements each, and rows that a warp has at once.
  static constexpr int kRowLanes = kDimK <= 64 ? 8 : kDimK <= 128 ? 16 : 32;
  static constexpr int kRowsAtOnce = 32 / kRowLanes;

  /// Rows past the task's are 0: their scores are computed and never stored.
  __device__ void load_row(const DeviceTask& task, int r) const {
    const int unit = lane() % kRowLanes;
    float elements[8] = {};
    if (r < task.rows && unit < kDimK / 8) {
      const std::int64_t at = token_of(p_, task, r) * p_.q_token_stride +
                              (task.kv_head * kGroup + r % kGroup) * p_.q_head_stride + unit * 8;
#pragma unroll
      for (int i = 0; i < 8; ++i) elements[i] = load_element<kQueryType>(p_.q, at + i);
    }
    float largest = 0.0f;
#pragma unroll
    for (float element : elements) largest = larger_size(largest, element);
#pragma unroll
    for (int step = 1; step < kRowLanes; step *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, step));
    }
    const QueryScale scale(largest);
    const auto pair = [&](int i) {
      return pack_pair<Dtype::kFloat16>(elements[i] * scale.up, elements[i + 1] * scale.up);
    };
    if (unit >= kDimK / 8) return;
    st_shared_v4(shared_.queries(0) + kImageK.unit(r, unit), {pair(0), pair(2), pair(4), pair(6)});
    if (unit == 0) shared_.query_factors()[r] = scale.down;
  }

  // ---- Keys and values ----

  /// `live` of the tile's keys are written, if the sequence ends in it.
  __device__ void convert_keys(int live) {
    const int slot = wait_float8();
    if (kRowScales && warp() == 0) weigh_values(live);
    const int stage = tile_ % kPrefillStages;
    mbarrier_wait(shared_.keys_empty(stage), tile_ / kPrefillStages % 2 ^ 1);
    convert<kDimK>(shared_.float8_tile(slot), shared_.keys(stage), tile_);
    finish(slot, shared_.keys_full(stage));
    ++tile_;
  }

  /// Slots past the end of the sequence may hold anything, and 0 * NaN is NaN: they become 0.
  __device__ void convert_values(int live) {
    const int slot = wait_float8();
    const int stage = value_tile_ % kPrefillStages;
    mbarrier_wait(shared_.values_empty(stage), value_tile_ / kPrefillStages % 2 ^ 1);
    convert<kDimV>(shared_.float8_tile(slot), shared_.values(stage), value_tile_ + 1);
    if (live < kPrefillKeys) clear_values(stage, live);
    finish(slot, shared_.values_full(stage));
    ++value_tile_;
  }

  __device__ void clear_values(int stage, int live) const {
    constexpr int kUnits = kImageV.stored_units();
    barrier();
#pragma unroll 1
    for (int i = thread_; i < (kPrefillKeys - live) * kUnits; i += kQueryThreads) {
      st_shared_v4(shared_.values(stage) + kImageV.stored_unit(live + i / kUnits, i % kUnits),
                   uint4{});
    }
  }
  /// Waits for the other converting warps.
  __device__ static void barrier() {
    asm volatile("barrier.cta.sync 3, %0;" ::"n"(kQueryThreads) : "memory");
  }

  __device__ int wait_float8() {
    const int slot = float8_tile_ % kFloat8Tiles;
    mbarrier_wait(shared_.float8_full(slot), float8_tile_ / kFloat8Tiles % 2);
    ++float8_tile_;
    return slot;
  }

  __device__ void finish(int slot, std::uint32_t full) const {
    fence_proxy_async();  // for the tensor cores
    __syncwarp();
    if (lane() != 0) return;
    mbarrier_arrive(full);
    mbarrier_arrive(shared_.float8_empty(slot));
  }

  /// A warp has every third group of rows, from another one on in each `turn`.
  template <int Dim>
  __device__ __forceinline__ void convert(std::uint32_t from, std::uint32_t to, int turn) const {
    constexpr KvImage kBytes{Dim, 1}, kHalves{Dim};
    constexpr int kParts = Dim / 64;  // of 4 units
    constexpr int kPartsAtOnce = 2;
    int at = opaque(lane());
#pragma unroll 1
    for (int group = (warp() + turn) % kQueryWarps; group < kPrefillKeys / kAtomRows;
         group += kQueryWarps) {
      // Registers do not suffice for the places in rows of many dims.
      if constexpr (kParts > kPartsAtOnce) at = opaque(at);
#pragma unroll
      for (int part = 0; part < kParts; part += kPartsAtOnce) {
        const int row = at % kAtomRows, unit = at / kAtomRows;
        uint4 elements[kPartsAtOnce];
#pragma unroll
        for (int i = 0; i < kPartsAtOnce && part + i < kParts; ++i) {
          elements[i] = ld_shared_v4(from + kBytes.bytes(group * kAtomRows) +
                                     kBytes.unit(row, 4 * (part + i) + unit));
        }
#pragma unroll
        for (int i = 0; i < kPartsAtOnce && part + i < kParts; ++i) {
          const std::uint32_t rows = to + kHalves.bytes(group * kAtomRows);
          const int first = 2 * (4 * (part + i) + unit);
          put(rows + kHalves.unit(row, first), elements[i].x, elements[i].y);
          put(rows + kHalves.unit(row, first + 1), elements[i].z, elements[i].w);
        }
      }
    }
  }
  __device__ static void put(std::uint32_t to, std::uint32_t low, std::uint32_t high) {
    st_shared_v4(to, {cvt_rn_f16x2_e4m3x2<0>(low), cvt_rn_f16x2_e4m3x2<1>(low),
                      cvt_rn_f16x2_e4m3x2<0>(high), cvt_rn_f16x2_e4m3x2<1>(high)});
  }

  /// Turns the values' scales into factors of weights, relative to a power of two that changes only
  /// where weights would leave float16's range: outputs must then be rescaled. Unwritten slots,
  /// whose scale may be anything, get 0.
  __device__ void weigh_values(int live) {
    constexpr int kEach = kPrefillKeys / 32;
    float* const scales = shared_.value_factors(tile_);
    float scale[kEach];
    std::uint32_t largest = 0, smallest = kNoExponent;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int key = lane() + 32 * i;
      scale[i] = key < live ? scales[key] : 0.0f;
      const std::uint32_t size = __float_as_uint(fabsf(scale[i]));
      // Not infinite or NaN; nor the least scale, which rows have whose elements are all 0.
      if (size >= kNoExponent << 23 || size <= 1u << 23) continue;
      largest = max(largest, size >> 23);
      smallest = min(smallest, size >> 23);
    }
    largest = max(__reduce_max_sync(kAllLanes, largest), kLeastExponent);
    smallest = __reduce_min_sync(kAllLanes, smallest);
    if (smallest < kNoExponent && (largest > exponent_ || smallest + kWidth < exponent_)) {
      exponent_ = largest;
    }
    const float factor = __uint_as_float((260 - exponent_) << 23);  // 2^6 against the exponent
#pragma unroll
    for (int i = 0; i < kEach; ++i) scales[lane() + 32 * i] = scale[i] * factor;
    if (lane() != 0) return;
    shared_.value_exponent(tile_) = exponent_ | (smallest + kWidth < exponent_ ? kWideTile : 0);
  }
  static constexpr std::uint32_t kNoExponent = 255;

  const AttendParams& p_;
  const PrefillShared& shared_;
  int thread_ = 0;
  int tile_ = 0, value_tile_ = 0, float8_tile_ = 0;  // of all that this thread block converted
  std::uint32_t exponent_ = kLeastExponent;          // of the values' scales
};

/// The warps beside the producer.
template <bool OfFloat8>
struct PrefillLoader {
  using Type = PrefillQueries;
};
template <>
struct PrefillLoader<true> {
  using Type = PrefillConverter;
};

}  // namespace kvmesh::cuda
