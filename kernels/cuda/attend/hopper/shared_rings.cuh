// The shared memory of all Hopper kernels beside the operands of their products: barriers of the
// stages, visits and tasks.
#pragma once

#include "kernels/cuda/attend/common/params.hpp"
#include "kernels/cuda/attend/hopper/instructions/mbarrier.cuh"

namespace kvmesh::cuda {

/// Places of a ring in turn, and the parity of what a wait at a place's barrier waits for.
template <int Places>
struct RingTurn {
  int place = 0;
  std::uint32_t parity = 0;

  __device__ void advance() {
    if (++place < Places) return;
    place = 0;
    parity ^= 1;
  }
};

/// `Tile` says where things lie; `Stages` of tiles, each of up to `MostVisits` boxes, are in shared
/// memory or on their way there. The first barriers are those of the stages.
template <auto Tile, int Stages, int MostVisits>
class SharedRings {
 public:
  __device__ PageVisit* visits(int stage) const {
    return at<PageVisit>(Tile.visits_offset()) + stage * MostVisits;
  }
  __device__ DeviceTask& task(int slot) const { return at<DeviceTask>(Tile.tasks_offset())[slot]; }
  /// Whether some row may not see the whole tile.
  __device__ int& masked(int stage) const { return at<int>(Tile.masked_offset())[stage]; }

  __device__ std::uint32_t keys_full(int stage) const { return barrier(stage); }
  __device__ std::uint32_t values_full(int stage) const { return barrier(Stages + stage); }
  __device__ std::uint32_t keys_empty(int stage) const { return barrier(2 * Stages + stage); }
  __device__ std::uint32_t values_empty(int stage) const { return barrier(3 * Stages + stage); }

 protected:
  __device__ SharedRings(char* begin, std::uint32_t address) : begin_(begin), address_(address) {}

  /// This many arrivals fill a stage of keys, and of values; each of `readers` warps releases it.
  __device__ void init_stages(int readers, int key_arrivals = 1, int value_arrivals = 1) const {
    for (int stage = 0; stage < Stages; ++stage) {
      mbarrier_init(keys_full(stage), key_arrivals);
      mbarrier_init(values_full(stage), value_arrivals);
      mbarrier_init(keys_empty(stage), readers);
      mbarrier_init(values_empty(stage), readers);
    }
  }

  template <class T>
  __device__ T* at(int offset) const {
    return reinterpret_cast<T*>(begin_ + offset);
  }
  /// Barrier `i` of the pieces' slots, which follow those of the stages.
  __device__ std::uint32_t piece_barrier(int i) const { return barrier(4 * Stages + i); }
  __device__ std::uint32_t address() const { return address_; }

 private:
  __device__ std::uint32_t barrier(int i) const {
    return address_ + Tile.barriers_offset() + i * 8;
  }

  char* begin_;
  std::uint32_t address_;
};

}  // namespace kvmesh::cuda
