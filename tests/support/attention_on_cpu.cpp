// The attention cases on the CPU backend.
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {

std::string_view backend() { return "cpu"; }

// Arithmetic is float32 for every dtype.
CaseTolerance tolerance_of(const CaseSpec&) { return {.o = 1e-5, .lse = 1e-5}; }
Dtype rounded_query_type(const CaseSpec& spec) { return spec.q_dtype; }

TileCounts run_attention(const AttentionShape& shape, const AttentionBatch& batch,
                         const AttentionOptions& options, const ConstTensorView& q,
                         const ConstKvPool& pool, const Partial& out, int threads,
                         const ConstTensorView& sinks) {
  AttentionPlan plan(shape, batch, options);
  ThreadPool pool_of_threads(threads);
  plan.attend_partial(q, pool, out, pool_of_threads, sinks);
  return plan.tiles();
}

}  // namespace kvmesh::test
