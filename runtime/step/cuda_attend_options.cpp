#include "runtime/step/cuda_attend_options.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

/// Rows for which a plan is made if its first batch is empty: enough for decode of most models,
/// with some speculation.
constexpr std::int64_t kUnknownRows = 16;

/// Returns the number of rows of the largest sequence that is decode or speculation.
std::int64_t short_rows(const AttentionShape& shape, std::span<const BatchEntry> batch) {
  const AttentionShape planned = cuda::planned_shape(shape);
  std::int64_t most = batch.empty() ? kUnknownRows : 1;
  for (const BatchEntry& entry : batch) {
    const std::int64_t rows = queries_of(entry) * (planned.q_heads / planned.kv_heads);
    if (rows <= cuda::kShortRows) most = std::max(most, rows);
  }
  return most;
}

/// Returns the query type for which kernels are prepared before the first launch.
Dtype query_type(Dtype pool) { return info_of(pool).has_scales ? Dtype::kBFloat16 : pool; }

}  // namespace

cuda::CudaAttend::Options attend_options(const StepOptions& options, const AttentionOptions& kind,
                                         std::span<const BatchEntry> first, bool merges_all) {
  const bool row_scales =
      has_scales(options.format.dtype, options.format.scales, ScaleKind::kPerTokenAndHead);
  cuda::CudaAttend::Options attend{
      .attention = kind,
      .block_mask = options.block_mask,
      .kinds = {.q = query_type(options.format.dtype),
                .pool = options.format.dtype,
                .latent = options.format.kind == PageKind::kLatent,
                .row_scales = row_scales,
                .scale_vectors = !row_scales || options.shape.page_size % 4 == 0},
      .short_rows = short_rows(options.shape, first),
      .fixed_split_tokens = options.fixed_split_tokens,
      .exact = options.reproducible};
  if (options.limits) {
    attend.limits = {.sequences = options.limits->sequences,
                     .queries = options.limits->query_tokens,
                     .pages = options.limits->pages,
                     .merges_all = merges_all,
                     .shares_prefixes = options.shares_prefixes && options.limits->shares_prefixes};
  }
  return attend;
}

}  // namespace kvmesh
