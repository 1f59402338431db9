// PagedAttention::forward: checks, one plan for the batch, and the conversion between [B, H, S, D]
// and the packed rows of the kernel.
#include <algorithm>
#include <limits>

#include "core/checked.hpp"
#include "core/half.hpp"
#include "core/tensor_check.hpp"
#include "kvmesh/paged_attention.hpp"
#include "runtime/step/batch_row.hpp"

namespace kvmesh {
namespace {

using ForwardOptions = PagedAttention::ForwardOptions;

// Rows [batch * q_len, heads, dim] of float32: the kernel needs the queries of a batch in one
// block.
struct PackedRows {
  PackedRows(const ConstTensorView& query, std::int64_t dim)
      : q_len(query.size(2)),
        values(static_cast<std::size_t>(
            checked_product("forward: rows", {query.size(0), q_len, query.size(1), dim}))),
        view(tensor(values.data(), {query.size(0) * q_len, query.size(1), dim})) {}

  // The rows of batch row b as [q_len, heads, dim].
  TensorView of(std::int64_t b) const {
    return {static_cast<float*>(view.data) + b * q_len * view.stride(0),
            Dtype::kFloat32,
            {q_len, view.size(1), view.size(2)}};
  }

  std::int64_t q_len;
  std::vector<float> values;
  TensorView view;
};

void copy_rows(const ConstTensorView& from, const TensorView& to) {
  for (std::int64_t t = 0; t < from.size(0); ++t) {
    for (std::int64_t h = 0; h < from.size(1); ++h) {
      const std::int64_t source = t * from.stride(0) + h * from.stride(1);
      const std::int64_t target = t * to.stride(0) + h * to.stride(1);
      for (std::int64_t d = 0; d < from.size(2); ++d) {
        store_element(to.data, to.dtype, target + d,
                      load_element(from.data, from.dtype, source + d));
      }
    }
  }
}

// [B, H, Q_LEN] as [B, H, Q_LEN, 1].
TensorView with_unit_dim(const TensorView& lse) {
  return {lse.data,
          lse.dtype,
          {lse.size(0), lse.size(1), lse.size(2), 1},
          {lse.stride(0), lse.stride(1), lse.stride(2), 1}};
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

// Position of the first query of batch row b.
std::int64_t first_position(const BlockMask* mask, std::size_t b) {
  if (mask == nullptr || mask->shape().q_start.empty()) return 0;
  return mask->shape().q_start[mask->shape().batch == 1 ? 0 : b];
}

}  // namespace

AttentionBatch PagedAttention::attention_batch(std::span<const int> rows,
                                               std::span<const std::int64_t> kv_lens,
                                               std::int64_t q_len,
                                               const BlockMask* block_mask) const {
  AttentionBatch batch;
  batch.kv_lens.assign(kv_lens.begin(), kv_lens.end());
  batch.q_indptr = {0};
  batch.page_indptr = {0};
  const std::int64_t page_size = allocator_.options().page_size;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    require(kv_lens[b] >= 0 && kv_lens[b] <= capacity(rows[b]),
            "forward: row {} has room for {} tokens, kv_lens says {}", rows[b], capacity(rows[b]),
            kv_lens[b]);
    const std::span<const PageId> table = pages(rows[b]);
    for (std::int64_t logical = 0; logical * page_size < kv_lens[b]; ++logical) {
      batch.pages.push_back(
          {table[static_cast<std::size_t>(logical)].index(), static_cast<std::int32_t>(logical)});
    }
    for (std::int64_t i = 0; i < q_len; ++i) {
      batch.q_positions.push_back(first_position(block_mask, b) + i);
    }
    batch.q_indptr.push_back(batch.q_indptr.back() + q_len);
    batch.page_indptr.push_back(std::ssize(batch.pages));
  }
  return batch;
}

void PagedAttention::forward(const ConstTensorView& query, const ConstTensorView& k_cache,
                             const ConstTensorView& v_cache, std::span<const std::int64_t> kv_lens,
                             const TensorView& out) const {
  forward(query, k_cache, v_cache, kv_lens, out, ForwardOptions{});
}

void PagedAttention::forward(const ConstTensorView& query, const ConstTensorView& k_cache,
                             const ConstTensorView& v_cache, std::span<const std::int64_t> kv_lens,
                             const TensorView& out, const ForwardOptions& options) const {
  const ConstKvPool pool{as_pool("k_cache", k_cache), as_pool("v_cache", v_cache)};
  check_query(query, k_cache, options.enable_gqa);
  const std::int64_t batch = query.size(0), heads = query.size(1), q_len = query.size(2);
  require(std::ssize(kv_lens) == batch, "forward: {} kv_lens for a batch of {}", kv_lens.size(),
          batch);
  check_outputs(query, v_cache.size(3), out, options.lse);
  const std::vector<int> rows = rows_or_all(options.batch_indices, batch);

  AttentionOptions attention{.scale = options.scale, .score = options.score_mod};
  attention.mask = mods::causal_upper_left();
  std::optional<LocalBlockMask> blocks;
  if (options.block_mask != nullptr) {
    check_block_mask(options.block_mask->shape(), query, kv_lens);
    attention.mask = options.block_mask->mask_mod();
    blocks = convert_logical_block_mask(*options.block_mask, rows, kv_lens);
    attention.block_mask = &*blocks;
  }
  AttentionPlan plan({.q_heads = static_cast<int>(heads),
                      .kv_heads = static_cast<int>(k_cache.size(1)),
                      .k_dim = static_cast<int>(query.size(3)),
                      .v_dim = static_cast<int>(v_cache.size(3)),
                      .page_size = allocator_.options().page_size},
                     attention_batch(rows, kv_lens, q_len, options.block_mask), attention);

  const PackedRows q(query, query.size(3)), o(query, v_cache.size(3)), lse(query, 1);
  for (std::int64_t b = 0; b < batch; ++b) copy_rows(batch_row(query, b), q.of(b));
  ThreadPool threads(1);
  plan.attend_partial(q.view, pool,
                      {o.view, {lse.view.data, Dtype::kFloat32, {batch * q_len, heads}}}, threads);
  for (std::int64_t b = 0; b < batch; ++b) {
    copy_rows(o.of(b), batch_row(out, b));
    if (!options.lse.empty()) copy_rows(lse.of(b), batch_row(with_unit_dim(options.lse), b));
  }
}

}  // namespace kvmesh
