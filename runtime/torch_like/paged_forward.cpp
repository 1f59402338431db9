// PagedAttention::forward: checks, and the conversion between [B, H, S, D] and rows.
#include <algorithm>
#include <limits>

#include "core/tensors/tensor_check.hpp"
#include "kernels/attend_checks.hpp"
#include "runtime/torch_like/batch_rows.hpp"
#include "runtime/torch_like/paged_state.hpp"

namespace kvmesh {
namespace {

using ForwardOptions = PagedAttention::ForwardOptions;

// [B, H, Q_LEN] as [B, H, Q_LEN, 1].
TensorView with_unit_dim(const TensorView& lse) {
  return {lse.data,
          lse.dtype,
          {lse.size(0), lse.size(1), lse.size(2), 1},
          {lse.stride(0), lse.stride(1), lse.stride(2), 1},
          lse.device};
}

void check_query(const ConstTensorView& query, const ConstTensorView& k_cache, bool enable_gqa) {
  check_tensor("forward: query", query, 4);
  require(query.stride(3) == 1,
          "forward: query must be [B, H, Q_LEN, D] with a contiguous last dimension, is {}", query);
  require(query.size(3) == k_cache.size(3), "forward: query has dim {}, k_cache {}", query.size(3),
          k_cache.size(3));
  require(query.size(1) <= std::numeric_limits<int>::max(), "forward: query has {} heads",
          query.size(1));
  require(query.size(1) == k_cache.size(1) || enable_gqa,
          "forward: query has {} heads, the cache {}: set enable_gqa for grouped queries",
          query.size(1), k_cache.size(1));
}

void check_outputs(const ConstTensorView& query, std::int64_t v_dim, const TensorView& out,
                   const TensorView& lse) {
  const std::int64_t batch = query.size(0), heads = query.size(1), q_len = query.size(2);
  check_output_tensor("forward: out", out, 4);
  require(out.size(0) == batch && out.size(1) == heads && out.size(2) == q_len &&
              out.size(3) == v_dim && out.stride(3) == 1,
          "forward: out must be [{}, {}, {}, {}] with a contiguous last dimension, is {}", batch,
          heads, q_len, v_dim, out);
  if (lse.empty()) return;
  check_output_tensor("forward: lse", lse, 3);
  require(lse.size(0) == batch && lse.size(1) == heads && lse.size(2) == q_len &&
              lse.dtype == Dtype::kFloat32,
          "forward: lse must be float32 [{}, {}, {}], is {}", batch, heads, q_len, lse);
}

void check_block_mask(const BlockMaskShape& mask, const ConstTensorView& query,
                      std::span<const std::int64_t> kv_lens) {
  require(mask.q_len == query.size(2) && (mask.heads == 1 || mask.heads == query.size(1)),
          "forward: the block mask is for {} queries and {} heads, query has {} and {}", mask.q_len,
          mask.heads, query.size(2), query.size(1));
  const std::int64_t longest = kv_lens.empty() ? 0 : std::ranges::max(kv_lens);
  require(longest <= mask.kv_len, "forward: the block mask ends at key {}, kv_lens says {}",
          mask.kv_len, longest);
}

// [tokens, H, 1] as [tokens, H].
TensorView without_unit_dim(TensorView lse) {
  lse.dims = 2;
  return lse;
}

}  // namespace

void PagedAttention::forward(const ConstTensorView& query, const ConstTensorView& k_cache,
                             const ConstTensorView& v_cache, std::span<const std::int64_t> kv_lens,
                             const TensorView& out) const {
  forward(query, k_cache, v_cache, kv_lens, out, ForwardOptions{});
}

void PagedAttention::forward(const ConstTensorView& query, const ConstTensorView& k_cache,
                             const ConstTensorView& v_cache, std::span<const std::int64_t> kv_lens,
                             const TensorView& out, const ForwardOptions& options) const {
  const KvPool pool{as_pool("k_cache", k_cache), as_pool("v_cache", v_cache)};
  check_query(query, k_cache, options.enable_gqa);
  require(std::ssize(kv_lens) == query.size(0), "forward: {} kv_lens for a batch of {}",
          kv_lens.size(), query.size(0));
  check_outputs(query, v_cache.size(3), out, options.lse);
  check_scale(options.scale);
  state().check_place("forward: query", query);
  state().check_place("forward: out", out);
  state().check_place("forward: lse", options.lse);
  if (options.block_mask) check_block_mask(options.block_mask->shape(), query, kv_lens);

  const std::vector<int> rows = rows_or_all(options.batch_indices, query.size(0));
  BatchRows q("query", query);
  BatchRows o("out", out);
  std::optional<BatchRows<TensorView>> lse;
  if (!options.lse.empty()) lse.emplace("lse", with_unit_dim(options.lse));
  q.copy_in();
  const CombineOutput output{.o = o.view(),
                             .lse = lse ? without_unit_dim(lse->view()) : TensorView{}};
  state().attend(rows, kv_lens, q.view(), pool, output, options);
  o.copy_out();
  if (lse) lse->copy_out();
}

}  // namespace kvmesh
