// The attention cases on the CUDA backend.
#include "kernels/attend_work.hpp"
#include "kernels/cuda/attend_cuda.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/planned_batch.hpp"
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {

std::string_view backend() { return "cuda"; }

// The tensor cores take weights in the pool's type, with 8 or 11 bits: each is off by up to 2^-9 or
// 2^-12 of itself, and O, where values cancel, by a few times that. Queries of another type are
// rounded likewise, which moves the scores, and so the LSE.
CaseTolerance tolerance_of(const CaseSpec& spec) {
  if (spec.dtype == Dtype::kFloat32) return {.o = 1e-5, .lse = 1e-5};
  const double rounding = spec.dtype == Dtype::kBFloat16 ? 0x1p-9 : 0x1p-12;
  if (spec.q_dtype == spec.dtype) return {.o = 4 * rounding, .lse = 2e-5};
  return {.o = 16 * rounding, .lse = 16 * rounding};
}

TileCounts run_attention(const AttentionShape& shape, const AttentionBatch& batch,
                         const AttentionOptions& options, const ConstTensorView& q,
                         const ConstKvPool& pool, const Partial& out, int) {
  const DeviceTensor device_q(q), k(pool.k), v(pool.v), o(out.o), lse(out.lse);
  const ConstKvPool device_pool{k.view(), v.view()};
  check_attention(shape, batch);  // of what a plan on the device trusts its caller for
  cuda::CudaAttend plan(
      kernels(), shape,
      {.attention = options,
       .kinds = cuda::kinds_of(device_q.view(), device_pool),
       .short_rows = PlannedBatch::short_rows(batch, shape.q_heads / shape.kv_heads)});
  const Stream stream;
  cuda::PageLists pages;
  plan.plan(pages, PlannedBatch(batch, pages).step(), stream);
  plan.launch(device_q.view(), device_pool, {o.view(), lse.view()}, stream);
  stream.wait();
  o.download(out.o.data);
  lse.download(out.lse.data);
  return plan.current().tiles();
}

}  // namespace kvmesh::test
