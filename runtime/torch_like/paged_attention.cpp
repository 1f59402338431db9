#include "kvmesh/paged_attention.hpp"

#include <algorithm>
#include <numeric>

#include "core/tensors/tensor_check.hpp"
#include "kernels/pool_checks.hpp"
#include "runtime/torch_like/batch_rows.hpp"
#include "runtime/torch_like/paged_state.hpp"

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

AllocatorOptions allocator_options(const Mesh& mesh, std::int64_t n_pages, int page_size,
                                   Placement placement) {
  require(mesh.head_parallel() == 1, "PagedAttention: head_parallel is {}, it must be 1",
          mesh.head_parallel());
  require(n_pages % mesh.kv_parallel() == 0,
          "PagedAttention: {} pages on {} ranks: it must be a multiple", n_pages,
          mesh.kv_parallel());
  return {.ranks = mesh.kv_parallel(),
          .pages_per_rank = n_pages / mesh.kv_parallel(),
          .page_size = page_size,
          .placement = placement};
}

Mesh mesh_of_one() { return Mesh(make_single_communicator(), {.threads = 1}); }

}  // namespace

PagedAttention::State::State(Mesh owner, const AllocatorOptions& options, int max_batch_size)
    : mesh(std::move(owner)), allocator(options), backend(make_backend(mesh, allocator)) {
  require(max_batch_size > 0 && max_batch_size <= kMostRows,
          "PagedAttention: max_batch_size is {}, it may be 1 to {}", max_batch_size, kMostRows);
  for (int i = 0; i < max_batch_size; ++i) rows.push_back(allocator.create());
}

void PagedAttention::State::let_go() noexcept {
  try {
    wait_for_peers();
  } catch (const std::exception&) {
    // The error is dropped: the NCCL group is broken now, and its next use reports that.
  }
}

void PagedAttention::State::check_place(const char* what, const ConstTensorView& tensor) const {
  require(tensor.empty() || tensor.device == mesh.device(), "{} is in {}, the pages in {}", what,
          tensor.device, mesh.device());
}

PagedAttention::PagedAttention(std::int64_t n_pages, int page_size, int max_batch_size) {
  Mesh mesh = mesh_of_one();
  const auto options = allocator_options(mesh, n_pages, page_size, Placement::kBalanced);
  state_ = std::make_unique<State>(std::move(mesh), options, max_batch_size);
}

PagedAttention::PagedAttention(Mesh& mesh, std::int64_t n_pages, int page_size, int max_batch_size,
                               Placement placement)
    : state_(std::make_unique<State>(
          mesh.share(), allocator_options(mesh, n_pages, page_size, placement), max_batch_size)) {}

PagedAttention::~PagedAttention() = default;
PagedAttention::PagedAttention(PagedAttention&&) noexcept = default;
PagedAttention& PagedAttention::operator=(PagedAttention&&) noexcept = default;

PagedAttention::State& PagedAttention::state() const {
  require(state_ != nullptr, "PagedAttention: it has been moved from");
  return *state_;
}

SequenceId PagedAttention::row(int batch_idx) const {
  require(batch_idx >= 0 && batch_idx < static_cast<int>(state().rows.size()),
          "PagedAttention: row {} of a batch of {}", batch_idx, state().rows.size());
  return state().rows[static_cast<std::size_t>(batch_idx)];
}

void PagedAttention::reserve(int batch_idx, std::int64_t seq_len) {
  state().allocator.reserve(row(batch_idx), seq_len);
}

void PagedAttention::erase(int batch_idx) {
  state().allocator.erase(row(batch_idx));
  state().rows[static_cast<std::size_t>(batch_idx)] = state().allocator.create();
}

std::int64_t PagedAttention::capacity(int batch_idx) const {
  return std::ssize(pages(batch_idx)) * state().page_size();
}

std::int64_t PagedAttention::free_pages() const { return state().allocator.free_pages(); }

std::span<const PageId> PagedAttention::pages(int batch_idx) const {
  return state().allocator.pages(row(batch_idx));
}

std::int64_t PagedAttention::physical_page(PageId page) const {
  return page.rank().value * pages_per_rank() + page.index();
}

std::int64_t PagedAttention::pages_per_rank() const { return state().pages_per_rank(); }

std::int64_t PagedAttention::first_page() const {
  return state().mesh.page_rank().value * pages_per_rank();
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

// A flat cache [1, H, positions, D] as a pool [pages, H, page_size, D] of this rank's pages: to be
// read only, where the cache is.
TensorView PagedAttention::as_pool(const char* what, const ConstTensorView& cache) const {
  const std::int64_t page_size = state().page_size(), mine = pages_per_rank();
  const std::int64_t all = mine * state().mesh.kv_parallel();
  check_tensor(what, cache, 4);
  state().check_place(what, cache);
  const bool is_share = cache.size(2) == mine * page_size;
  require(cache.size(0) == 1 && (is_share || cache.size(2) == all * page_size),
          "PagedAttention: {} must be [1, heads, {}, dim] ({} pages of {}{}), is {}", what,
          all * page_size, all, page_size,
          mine == all ? "" : fmt::format(", or {} alone: this rank's share", mine), cache);
  const std::int64_t first = is_share ? 0 : first_page() * page_size * cache.stride(2);
  auto* const data = static_cast<std::byte*>(const_cast<void*>(cache.data));
  return {data + first * static_cast<std::int64_t>(size_bytes(cache.dtype)),
          cache.dtype,
          {mine, cache.size(1), page_size, cache.size(3)},
          {page_size * cache.stride(2), cache.stride(1), cache.stride(2), cache.stride(3)},
          cache.device};
}

std::vector<TokenSlot> PagedAttention::slots_of(std::span<const int> batch_idx,
                                                std::span<const std::int64_t> input_pos) const {
  const std::int64_t page_size = state().page_size();
  const std::size_t tokens = input_pos.size() / std::max<std::size_t>(batch_idx.size(), 1);
  std::vector<TokenSlot> slots;
  slots.reserve(input_pos.size());
  for (std::size_t i = 0; i < input_pos.size(); ++i) {
    const int b = batch_idx[i / tokens];
    const std::int64_t position = input_pos[i];
    require(position >= 0 && position < capacity(b),
            "assign: position {} of row {}, which has room for {}: reserve more first", position, b,
            capacity(b));
    const PageId page = pages(b)[static_cast<std::size_t>(position / page_size)];
    const auto offset = static_cast<std::int32_t>(position % page_size);
    slots.push_back(page.rank() == state().mesh.page_rank() ? TokenSlot{page.index(), offset}
                                                            : TokenSlot{});
  }
  return slots;
}

void PagedAttention::assign(std::span<const int> batch_idx, std::span<const std::int64_t> input_pos,
                            const ConstTensorView& k_val, const ConstTensorView& v_val,
                            const TensorView& k_cache, const TensorView& v_cache, Stream stream) {
  check_values("k", k_val, k_cache, batch_idx.size(), input_pos.size());
  check_values("v", v_val, v_cache, batch_idx.size(), input_pos.size());
  state().check_place("assign: k_val", k_val);
  state().check_place("assign: v_val", v_val);
  const KvPool pool{as_pool("k_cache", k_cache), as_pool("v_cache", v_cache)};
  check_writable_pool("assign", pool);
  const std::vector<TokenSlot> slots = slots_of(batch_idx, input_pos);
  if (slots.empty()) return;
  const std::size_t tokens = slots.size() / batch_idx.size();
  for (std::size_t i = 0; i < batch_idx.size(); ++i) {
    const auto b = static_cast<std::int64_t>(i);
    const ConstTensorView k = batch_row(k_val, b), v = batch_row(v_val, b);
    check_new_tokens(k, v, pool, std::ssize(slots) / std::ssize(batch_idx));
    state().backend->write(pool, k, v, std::span(slots).subspan(i * tokens, tokens), stream);
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
    const std::int64_t page_size = state().page_size();
    const std::int64_t used =
        kv_len.empty() ? std::ssize(all) : (kv_len[b] + page_size - 1) / page_size;
    tables.push_back(all.first(static_cast<std::size_t>(std::min(used, std::ssize(all)))));
  }
  return convert_to_local(block_mask, tables, static_cast<int>(state().page_size()),
                          state().mesh.page_rank());
}

}  // namespace kvmesh
