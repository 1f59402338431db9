#include "runtime/step/exact/cuda_exact_combine.hpp"

#include <cuda_runtime_api.h>

#include <cstring>

#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/memory.hpp"
#include "kernels/cuda/attend/cuda_attend.hpp"
#include "kvmesh/device_memory.hpp"

namespace kvmesh {
namespace {

/// The list of merges that lies before the merged rows on the device: one.
struct WholeMerge {
  cuda::DeviceMerge merge;
  alignas(16) std::int32_t count;
};
static_assert(sizeof(WholeMerge) % 16 == 0, "rows behind it are read by 16 bytes");

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

void refuse_capture(Stream stream) {
  if (stream.handle == nullptr || !cuda_memory::is_captured(stream)) return;
  throw Unsupported(
      "run: a reproducible step of several ranks goes by way of the host, so no graph has it");
}

}  // namespace

CudaExactCombine::CudaExactCombine(Mesh& mesh, cuda::KernelStore& kernels,
                                   std::shared_ptr<RowExchange> rows, const CombineOptions& options,
                                   int v_dim)
    : mesh_(mesh),
      options_(options),
      v_dim_(v_dim),
      combine_(std::move(rows)),
      merge_(kernels, v_dim) {
  combine_.check(options);
}

void CudaExactCombine::plan(const AttentionShape& shape, const StepBatch& batch,
                            std::int64_t tokens) {
  CombineOptions options = options_;
  const Participation& mask = batch.participation();
  std::optional<Participation> padded;
  if (mask.tokens() < tokens) padded = mask.padded(tokens);
  options.participation = padded ? &*padded : &mask;
  combine_.plan({tokens, shape.q_heads, shape.v_dim}, options, batch.digest(),
                ExactCombine::Finish::kCaller);
  rows_ = tokens * shape.q_heads;
  const auto row_bytes = static_cast<std::size_t>(exact_row_bytes(v_dim_));
  mine_.reserve(static_cast<std::size_t>(rows_) * row_bytes);
  const auto own = static_cast<std::size_t>(combine_.own().rows());
  host_merged_.resize(sizeof(WholeMerge) + own * row_bytes);
  merged_.reserve(host_merged_.size());
}

void CudaExactCombine::run(const CombineOutput& output, const float* sinks, Stream stream) {
  refuse_capture(stream);
  exchange(stream);
  const CombineBlock own = combine_.own();
  const auto* whole = reinterpret_cast<const WholeMerge*>(merged_.data());
  merge_.launch({.merges = &whole->merge,
                 .merge_count = &whole->count,
                 .rows = merged_.data() + sizeof(WholeMerge),
                 .to_rows = nullptr,
                 .sinks = sinks == nullptr ? nullptr : sinks + own.heads.begin,
                 .out = cuda::attend_output({output.o, output.lse}),
                 .q_heads = static_cast<std::int32_t>(own.heads.size()),
                 .group = static_cast<std::int32_t>(own.heads.size())},
                1, own.rows(), native(stream), false);
}

void CudaExactCombine::exchange(Stream stream) {
  constexpr std::string_view kOperation = "combine: exact rows";
  host_mine_.resize(static_cast<std::size_t>(rows_ * exact_row_bytes(v_dim_)));
  mesh_.wait(stream, kOperation);
  copy_bytes(host_mine_.data(), mine_.data(), host_mine_.size());
  combine_.run_unfinished({host_mine_.data(), v_dim_},
                          {host_merged_.data() + sizeof(WholeMerge), v_dim_});
  const WholeMerge whole{.merge = {.kv_head = 0,
                                   .first_token = 0,
                                   .rows = static_cast<std::int32_t>(combine_.own().rows()),
                                   .workspace_row = 0,
                                   .splits = 1,
                                   .counts_sinks = 1,
                                   .shared_row = 0,
                                   .shared_rows = 0,
                                   .shared_splits = 0},
                         .count = 1};
  std::memcpy(host_merged_.data(), &whole, sizeof whole);
  copy_bytes(merged_.data(), host_merged_.data(), host_merged_.size());
}

}  // namespace kvmesh
