#include "kvmesh/paged_attention.hpp"

#include <algorithm>
#include <numeric>

#include "core/tensor_check.hpp"
#include "runtime/step/batch_row.hpp"

namespace kvmesh {
namespace {

constexpr int kMostRows = 1 << SequenceId::kSlotBits;

void check_values(const char* name, const ConstTensorView& value, const TensorView& cache,
                  std::size_t batch, std::size_t positions) {
  check_tensor(fmt::format("assign: {}_val", name), value, 4);
  check_output_tensor(fmt::format("assign: {}_cache", name), cache, 4);
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
  require(max_batch_size > 0 && max_batch_size <= kMostRows,
          "PagedAttention: max_batch_size is {}, it may be 1 to {}", max_batch_size, kMostRows);
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
  check_tensor(what, cache, 4);
  require(cache.size(0) == 1 && cache.size(2) == pages * page_size,
          "PagedAttention: {} must be [1, heads, {}, dim] ({} pages of {}), is {}", what,
          pages * page_size, pages, page_size, cache);
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
  for (std::int64_t length : kv_len) {
    require(length >= 0, "PagedAttention: a length of {}", length);
  }
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

}  // namespace kvmesh
