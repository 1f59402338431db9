// The attention cases on the CUDA backend.
#include <algorithm>
#include <optional>

#include "kernels/attend_steps.hpp"
#include "kernels/cuda/attend/cuda_attend.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/planned_batch.hpp"
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {

std::string_view backend() { return "cuda"; }

// The tensor cores take weights in the pool's type, with 8 or 11 bits (of float8 11): each is off
// by up to 2^-8 or 2^-11 of itself, and so O by as much of the values.
CaseTolerance tolerance_of(const CaseSpec& spec) {
  if (spec.dtype == Dtype::kFloat32) return {.o = 1e-5, .lse = 1e-5};
  const double rounding = spec.dtype == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
  return {.o = 2 * rounding, .lse = 2e-5};
}

Dtype rounded_query_type(const CaseSpec& spec) {
  if (spec.dtype == Dtype::kFloat32) return spec.q_dtype;
  if (spec.dtype != Dtype::kFloat8E4M3) return spec.dtype;
  // Rows are scaled before they become float16, which leaves bfloat16 as it is.
  return spec.q_dtype == Dtype::kFloat32 ? Dtype::kFloat16 : spec.q_dtype;
}

namespace {

// A device takes masks of all pages, not of the local ones.
BlockMask block_mask_of(const LocalBlockMask& local, int page_size) {
  std::vector<BlockRow> rows;
  std::int32_t pages = 1;
  for (std::int64_t b = 0; b < local.batch(); ++b) {
    for (std::int64_t h = 0; h < local.heads(); ++h) {
      for (std::int64_t q = 0; q < local.q_blocks(); ++q) {
        BlockRow& row = rows.emplace_back();
        for (const LocalBlock& block : local.row(b, h, q)) {
          (block.full ? row.full : row.partial).push_back(block.logical);
          pages = std::max(pages, block.logical + 1);
        }
      }
    }
  }
  return BlockMask::from_lists({.batch = local.batch(),
                                .heads = local.heads(),
                                .q_len = local.q_blocks() * local.q_block(),
                                .kv_len = std::int64_t{pages} * page_size,
                                .q_block = local.q_block(),
                                .kv_block = page_size},
                               rows);
}

}  // namespace

TileCounts run_attention(const AttentionShape& shape, const AttentionBatch& batch,
                         const AttentionOptions& options, const ConstTensorView& q,
                         const ConstKvPool& pool, const Partial& out, int,
                         const ConstTensorView& sinks) {
  const DeviceTensor device_q(q), o(out.o), lse(out.lse);
  const DevicePool pool_on_device(pool);
  const ConstKvPool device_pool = pool_on_device.view();
  std::optional<DeviceTensor> device_sinks;
  if (!sinks.empty()) device_sinks.emplace(sinks);
  const ConstTensorView given = device_sinks ? device_sinks->view() : TensorView{};
  check_attention(shape, batch);  // a plan on the device does not check this
  std::optional<BlockMask> block_mask;
  if (options.block_mask) block_mask = block_mask_of(*options.block_mask, shape.page_size);
  cuda::CudaAttend plan(
      kernels(), shape,
      {.attention = options,
       .block_mask = block_mask ? &*block_mask : nullptr,
       .kinds = cuda::kinds_of(device_q.view(), device_pool, given),
       .short_rows = PlannedBatch::short_rows(batch, shape.q_heads / shape.kv_heads)});
  const Stream stream;
  cuda::PageLists pages;
  PlannedBatch planned(batch, pages);
  cuda::AttendPlanner planner;
  planner.plan({&plan, 1}, pages, options.shares_prefixes ? planned.step_of(plan) : planned.step(),
               stream);
  plan.check(device_q.view(), device_pool, given);
  plan.launch(device_q.view(), device_pool, {o.view(), lse.view()}, stream, given);
  stream.wait();
  o.download(out.o.data);
  lse.download(out.lse.data);
  return plan.current().tiles();
}

}  // namespace kvmesh::test
