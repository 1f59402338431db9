#include "kvmesh/paged_attention.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/check.hpp"
#include "core/half.hpp"

namespace kvmesh {
namespace {

// Row b of a [B, H, S, D] tensor as [S, H, D].
template <class View>
View batch_row(const View& tensor, std::int64_t b) {
  const std::int64_t offset =
      b * tensor.stride(0) * static_cast<std::int64_t>(size_bytes(tensor.dtype));
  using Bytes = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(tensor.data)>>,
                                   const std::byte*, std::byte*>;
  return View(static_cast<Bytes>(tensor.data) + offset, tensor.dtype,
              {tensor.size(2), tensor.size(1), tensor.size(3)},
              {tensor.stride(2), tensor.stride(1), tensor.stride(3)});
}

// What `PagedAttention::forward` computes in, packed over the batch.
struct PackedRows {
  PackedRows(std::int64_t tokens, std::int64_t heads, std::int64_t dim)
      : values(static_cast<std::size_t>(tokens * heads * dim)),
        view(tensor(values.data(), {tokens, heads, dim})) {}
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

TensorView tokens_of(const TensorView& packed, std::int64_t first, std::int64_t count) {
  return {static_cast<float*>(packed.data) + first * packed.stride(0),
          Dtype::kFloat32,
          {count, packed.size(1), packed.size(2)}};
}

void check_values(const char* name, const ConstTensorView& value, const ConstTensorView& cache,
                  std::size_t batch, std::size_t positions) {
  require(value.dims == 4 && cache.dims == 4,
          "assign: {}_val and {}_cache must have 4 dimensions, are {} and {}", name, name,
          describe(value), describe(cache));
  require(value.size(0) == static_cast<std::int64_t>(batch),
          "assign: {}_val and batch_idx must have the same batch size, have {} and {}", name,
          value.size(0), batch);
  require(value.size(1) == cache.size(1),
          "assign: {}_val and {}_cache must have the same number of heads, have {} and {}", name,
          name, value.size(1), cache.size(1));
  require(value.size(0) * value.size(2) == static_cast<std::int64_t>(positions),
          "assign: {}_val and input_pos must have the same length, have {} and {} (batch {})", name,
          value.size(2), positions / std::max<std::size_t>(batch, 1), batch);
  require(value.size(3) == cache.size(3),
          "assign: {}_val and {}_cache must have the same hidden dim, have {} and {}", name, name,
          value.size(3), cache.size(3));
}

}  // namespace

PagedAttention::PagedAttention(std::int64_t n_pages, int page_size, int max_batch_size)
    : allocator_({.ranks = 1, .pages_per_rank = n_pages, .page_size = page_size}) {
  require(max_batch_size > 0, "PagedAttention: max_batch_size is {}", max_batch_size);
  for (int i = 0; i < max_batch_size; ++i) rows_.push_back(allocator_.create());
}

SequenceId PagedAttention::row(int batch_idx) const {
  require(batch_idx >= 0 && batch_idx < static_cast<int>(rows_.size()),
          "PagedAttention: row {} of a batch of {}", batch_idx, rows_.size());
  return rows_[static_cast<std::size_t>(batch_idx)];
}

void PagedAttention::reserve(int batch_idx, std::int64_t seq_len) {
  allocator_.reserve(row(batch_idx), seq_len);
}

void PagedAttention::erase(int batch_idx) {
  allocator_.erase(row(batch_idx));
  rows_[static_cast<std::size_t>(batch_idx)] = allocator_.create();
}

std::int64_t PagedAttention::capacity(int batch_idx) const {
  return std::ssize(pages(batch_idx)) * allocator_.options().page_size;
}

std::span<const PageId> PagedAttention::pages(int batch_idx) const {
  return allocator_.pages(row(batch_idx));
}

std::vector<int> PagedAttention::rows_or_all(std::span<const int> batch_idx,
                                             std::int64_t batch) const {
  std::vector<int> rows(batch_idx.begin(), batch_idx.end());
  if (rows.empty()) {
    rows.resize(static_cast<std::size_t>(batch));
    std::iota(rows.begin(), rows.end(), 0);
  }
  require(std::ssize(rows) == batch, "PagedAttention: {} batch indices for a batch of {}",
          rows.size(), batch);
  for (int r : rows) row(r);
  return rows;
}

// A flat cache [1, H, pages * page_size, D] as a pool [pages, H, page_size, D].
ConstTensorView PagedAttention::as_pool(const char* what, const ConstTensorView& cache) const {
  const std::int64_t pages = allocator_.options().pages_per_rank;
  const std::int64_t page_size = allocator_.options().page_size;
  require(cache.dims == 4 && cache.size(0) == 1 && cache.size(2) == pages * page_size,
          "PagedAttention: {} must be [1, heads, {}, dim] ({} pages of {}), is {}", what,
          pages * page_size, pages, page_size, describe(cache));
  return {cache.data,
          cache.dtype,
          {pages, cache.size(1), page_size, cache.size(3)},
          {page_size * cache.stride(2), cache.stride(1), cache.stride(2), cache.stride(3)}};
}

void PagedAttention::assign(std::span<const int> batch_idx, std::span<const std::int64_t> input_pos,
                            const ConstTensorView& k_val, const ConstTensorView& v_val,
                            const TensorView& k_cache, const TensorView& v_cache) {
  check_values("k", k_val, k_cache, batch_idx.size(), input_pos.size());
  check_values("v", v_val, v_cache, batch_idx.size(), input_pos.size());
  const int page_size = allocator_.options().page_size;
  const std::int64_t tokens = k_val.size(2);
  std::vector<TokenSlot> slots;
  for (std::size_t i = 0; i < input_pos.size(); ++i) {
    const int b = batch_idx[i / static_cast<std::size_t>(tokens)];
    const std::int64_t position = input_pos[i];
    require(position >= 0 && position < capacity(b),
            "assign: position {} of row {}, which has room for {}: reserve more first", position, b,
            capacity(b));
    const PageId page = pages(b)[static_cast<std::size_t>(position / page_size)];
    slots.push_back({page.index(), static_cast<std::int32_t>(position % page_size)});
  }
  auto writable = [this](const char* what, const TensorView& cache) {
    const ConstTensorView pool = as_pool(what, cache);
    TensorView view(cache.data, cache.dtype, {0, 0, 0, 0});
    view.shape = pool.shape;
    view.strides = pool.strides;
    return view;
  };
  const KvPool pool{writable("k_cache", k_cache), writable("v_cache", v_cache)};
  ThreadPool threads(1);
  for (std::size_t b = 0; b < batch_idx.size(); ++b) {
    append(pool, batch_row(k_val, static_cast<std::int64_t>(b)),
           batch_row(v_val, static_cast<std::int64_t>(b)),
           std::span(slots).subspan(b * static_cast<std::size_t>(tokens),
                                    static_cast<std::size_t>(tokens)),
           threads);
  }
}

LocalBlockMask PagedAttention::convert_logical_block_mask(
    const BlockMask& block_mask, std::span<const int> batch_idx,
    std::span<const std::int64_t> kv_len) const {
  std::int64_t batch = block_mask.shape().batch;
  if (batch == 1 && !batch_idx.empty()) batch = std::ssize(batch_idx);
  const std::vector<int> rows = rows_or_all(batch_idx, batch);
  require(kv_len.empty() || std::ssize(kv_len) == batch,
          "PagedAttention: {} lengths for a batch of {}", kv_len.size(), batch);
  std::vector<std::span<const PageId>> tables;
  for (std::size_t b = 0; b < rows.size(); ++b) {
    const std::span<const PageId> all = pages(rows[b]);
    const std::int64_t page_size = allocator_.options().page_size;
    const std::int64_t used =
        kv_len.empty() ? std::ssize(all) : (kv_len[b] + page_size - 1) / page_size;
    tables.push_back(all.first(static_cast<std::size_t>(std::min(used, std::ssize(all)))));
  }
  return convert_to_local(block_mask, tables, allocator_.options().page_size, Rank{0});
}

AttentionBatch PagedAttention::attention_batch(std::span<const int> rows,
                                               std::span<const std::int64_t> kv_lens,
                                               std::int64_t q_len) const {
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
    for (std::int64_t i = 0; i < q_len; ++i) batch.q_positions.push_back(i);
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
  require(query.dims == 4 && query.stride(3) == 1,
          "forward: query must be [B, H, Q_LEN, D] with a contiguous last dimension, is {}",
          describe(query));
  const std::int64_t batch = query.size(0), heads = query.size(1), q_len = query.size(2);
  require(query.size(3) == k_cache.size(3), "forward: query has dim {}, k_cache {}", query.size(3),
          k_cache.size(3));
  require(heads == k_cache.size(1) || options.enable_gqa,
          "forward: query has {} heads, the cache {}: set enable_gqa for grouped queries", heads,
          k_cache.size(1));
  require(std::ssize(kv_lens) == batch, "forward: {} kv_lens for a batch of {}", kv_lens.size(),
          batch);
  require(out.dims == 4 && out.size(0) == batch && out.size(1) == heads && out.size(2) == q_len &&
              out.size(3) == v_cache.size(3),
          "forward: out must be [{}, {}, {}, {}], is {}", batch, heads, q_len, v_cache.size(3),
          describe(out));
  const std::vector<int> rows = rows_or_all(options.batch_indices, batch);

  AttentionOptions attention{.scale = options.scale, .score = options.score_mod};
  attention.mask = options.block_mask ? options.block_mask->mask_mod() : mods::causal_upper_left();
  std::optional<LocalBlockMask> blocks;
  if (options.block_mask) {
    blocks = convert_logical_block_mask(*options.block_mask, rows, kv_lens);
    attention.block_mask = &*blocks;
  }
  AttentionPlan plan({.q_heads = static_cast<int>(heads),
                      .kv_heads = static_cast<int>(k_cache.size(1)),
                      .k_dim = static_cast<int>(query.size(3)),
                      .v_dim = static_cast<int>(v_cache.size(3)),
                      .page_size = allocator_.options().page_size},
                     attention_batch(rows, kv_lens, q_len), attention);

  PackedRows q(batch * q_len, heads, query.size(3)), o(batch * q_len, heads, v_cache.size(3));
  PackedRows lse(batch * q_len, heads, 1);
  for (std::int64_t b = 0; b < batch; ++b) {
    copy_rows(batch_row(query, b), tokens_of(q.view, b * q_len, q_len));
  }
  ThreadPool threads(1);
  plan.attend_partial(q.view, pool, {o.view, tensor(lse.values.data(), {batch * q_len, heads})},
                      threads);
  for (std::int64_t b = 0; b < batch; ++b) {
    copy_rows(tokens_of(o.view, b * q_len, q_len), batch_row(out, b));
    if (options.lse.empty()) continue;
    const TensorView& wanted = options.lse;
    const TensorView row(static_cast<float*>(wanted.data) + b * wanted.stride(0), wanted.dtype,
                         {q_len, heads, 1}, {wanted.stride(2), wanted.stride(1), 1});
    copy_rows(tokens_of(lse.view, b * q_len, q_len), row);
  }
}

}  // namespace kvmesh
