#include "launch/bench/gpu_gather.hpp"

#include <algorithm>

#include "launch/bench/gather.hpp"

namespace kvmesh::bench {
namespace {

constexpr std::int64_t kUnitBytes = sizeof(uint4);
constexpr std::int64_t kMostPageUnits = 1 << 30;  // the kernel counts them in 32 bits
constexpr int kCounters = 3;                      // two of the kernel, and the sum

std::int64_t bytes_of(const ConstTensorView& view, std::int64_t elements) {
  return elements * static_cast<std::int64_t>(size_bytes(view.dtype));
}

bool has_whole_units(const TensorView& pool) {
  const bool contiguous = pool.stride(2) == pool.size(3) &&
                          pool.stride(1) == pool.size(2) * pool.stride(2) &&
                          pool.stride(0) == pool.size(1) * pool.stride(1);
  return contiguous && bytes_of(pool, pool.size(3)) % kUnitBytes == 0 &&
         bytes_of(pool, pool.size(2) * pool.size(3)) / kUnitBytes <= kMostPageUnits;
}

GatherPlane plane_of(const TensorView& pool) {
  const std::int64_t token_units = bytes_of(pool, pool.size(3)) / kUnitBytes;
  return {.pool = static_cast<const uint4*>(pool.data),
          .page_units = static_cast<std::int32_t>(pool.size(2) * token_units),
          .token_units = static_cast<std::int32_t>(token_units)};
}

GatherRows rows_of(const TensorView& view) {
  return {.data = static_cast<uint4*>(view.data),
          .units = bytes_of(view, view.elements()) / kUnitBytes};
}

template <class Value>
DeviceMemory on_device(const std::vector<Value>& values, Device device, cudaStream_t stream) {
  const std::size_t bytes = values.size() * sizeof(Value);
  DeviceMemory memory(device, std::max<std::size_t>(bytes, sizeof(Value)));
  check(cudaMemcpyAsync(memory.data(), values.data(), bytes, cudaMemcpyHostToDevice, stream));
  return memory;
}

}  // namespace

bool can_gather(const KvPool& pool) {
  return has_whole_units(pool.k) && (pool.is_latent() || has_whole_units(pool.v));
}

GpuGather::GpuGather(const PageReads& reads, Device device, int multiprocessors,
                     cudaStream_t stream)
    : pools_(reads.pools) {
  const TensorView& keys = pools_.front().k;
  const std::int64_t heads = keys.size(1), page_size = keys.size(2);
  const GatherList list = gather_list(reads.sequences, page_size,
                                      gather_part_tokens(reads.sequences, heads, multiprocessors));
  pages_ = on_device(list.pages, device, stream);
  parts_ = on_device(list.parts, device, stream);
  counters_ = on_device(std::vector<unsigned>(kCounters), device, stream);
  check(cudaStreamSynchronize(stream));  // the host's lists are freed here
  auto* counters = static_cast<unsigned*>(counters_.data());
  params_ = {.pages = static_cast<const std::int32_t*>(pages_.data()),
             .parts = static_cast<const GatherPart*>(parts_.data()),
             .part_count = static_cast<std::int32_t>(list.parts.size()),
             .heads = static_cast<std::int32_t>(heads),
             .q = static_cast<const uint4*>(reads.q.data),
             .q_units = bytes_of(reads.q, reads.q.elements()) / kUnitBytes,
             .counters = counters,
             .sum = counters + 2};
  for (std::size_t i = 0; i < reads.out.size(); ++i) params_.out[i] = rows_of(reads.out[i]);
}

void GpuGather::enqueue(int call, int blocks, cudaStream_t stream) const {
  GatherParams params = params_;
  const KvPool& pool = pools_[static_cast<std::size_t>(call) % pools_.size()];
  params.planes[0] = plane_of(pool.k);
  params.planes[1] = pool.is_latent() ? GatherPlane{} : plane_of(pool.v);
  launch_gather(params, blocks, stream);
  check(cudaGetLastError());
}

unsigned GpuGather::sum(cudaStream_t stream) const {
  unsigned sum = 0;
  check(cudaMemcpyAsync(&sum, params_.sum, sizeof(sum), cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  return sum;
}

}  // namespace kvmesh::bench
