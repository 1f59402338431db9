// Paged attention with the shapes of PyTorch's flex_attention module, on any number of ranks.
//
// It has the operations of the `PagedAttention` in torch.nn.attention.experimental, for code that
// was written for that class: [B, H, S, D] tensors, flat caches that the caller owns, batch rows
// instead of sequence ids. Three errors of PyTorch's class are avoided: an erased row can be
// reserved again, page tables follow `batch_indices` into the mods, and a position without a page
// is an error.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/api.h"
#include "kvmesh/attention.hpp"
#include "kvmesh/block_mask.hpp"
#include "kvmesh/mesh.hpp"
#include "kvmesh/mods.hpp"
#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"

namespace KVMESH_API kvmesh {

/// Owns the page table. The caller owns the caches, one for K and one for V, on the mesh's device.
/// There are two forms, and a call takes K and V in the same one:
///
///   full   [1, H, n_pages * page_size, D]            page p is the positions [p * page_size, ...)
///   share  [1, H, pages_per_rank() * page_size, D]   page p of this rank is p - first_page()
///
/// Rank r has the pages [r * n, (r + 1) * n) with n = pages_per_rank(), and reads and writes no
/// others: of a full cache the rest stays as it is. With one rank the forms are the same.
///
/// All ranks call the same operations with the same arguments: `reserve`, `erase` and `assign` need
/// no message, `forward` is collective. One thread per rank. A moved-from object throws
/// InvalidArgument.
class PagedAttention {
 public:
  /// Makes it for one rank, with caches in host memory and one thread.
  /// @throws InvalidArgument.
  PagedAttention(std::int64_t n_pages, int page_size, int max_batch_size);
  /// Makes it on the mesh, which may end first. REQUIRES: head_parallel is 1; n_pages is a multiple
  /// of the ranks.
  /// @throws InvalidArgument.
  PagedAttention(Mesh& mesh, std::int64_t n_pages, int page_size, int max_batch_size,
                 Placement placement = Placement::kBalanced);
  ~PagedAttention();
  PagedAttention(PagedAttention&&) noexcept;
  PagedAttention& operator=(PagedAttention&&) noexcept;

  /// Makes room for at least `seq_len` tokens in row `batch_idx`.
  /// @throws OutOfPages, InvalidArgument.
  void reserve(int batch_idx, std::int64_t seq_len);
  /// Frees all pages of the row.
  void erase(int batch_idx);

  /// Tokens that the row has pages for.
  std::int64_t capacity(int batch_idx) const;
  std::int64_t free_pages() const;
  /// The row's pages in logical order.
  std::span<const PageId> pages(int batch_idx) const;
  /// The number of a page in a full cache.
  std::int64_t physical_page(PageId page) const;
  std::int64_t pages_per_rank() const;
  /// The number of this rank's first page in a full cache.
  std::int64_t first_page() const;

  /// Writes k_val [B, H, S, K_D] and v_val [B, H, S, V_D] to positions `input_pos` [B, S]
  /// (row-major) of the rows `batch_idx` [B]: those whose pages this rank has.
  /// @throws InvalidArgument, before anything is written, if the sizes of the four tensors disagree
  /// or a position has no page.
  /// On a GPU it runs after the work on `stream`, and blocks until it is done.
  void assign(std::span<const int> batch_idx, std::span<const std::int64_t> input_pos,
              const ConstTensorView& k_val, const ConstTensorView& v_val, const TensorView& k_cache,
              const TensorView& v_cache, Stream stream = {});

  /// Converts logical kv blocks to this rank's pages. `batch_idx` has the row of each batch row of
  /// the mask; empty: 0, 1, ... `kv_len` has the rows' lengths; empty: their capacities.
  /// @throws InvalidArgument if the mask's kv_block is not the page size.
  LocalBlockMask convert_logical_block_mask(const BlockMask& block_mask,
                                            std::span<const int> batch_idx = {},
                                            std::span<const std::int64_t> kv_len = {}) const;

  /// Returns `mask_mod` over physical positions in a full cache. It is false where the position's
  /// page does not belong to row b or the position is past `kv_len[b]`; elsewhere it is `mask_mod`
  /// at the logical position. It keeps a snapshot of the page table.
  MaskMod get_mask_mod(const MaskMod& mask_mod, std::span<const std::int64_t> kv_len = {},
                       std::span<const int> batch_idx = {}) const;
  /// Returns `score_mod` over physical positions in a full cache; -inf where the position's page
  /// does not belong to row b or the position is past `kv_len[b]`. It keeps a snapshot of the page
  /// table.
  ScoreMod get_score_mod(const ScoreMod& score_mod, std::span<const std::int64_t> kv_len = {},
                         std::span<const int> batch_idx = {}) const;

  struct ForwardOptions {
    /// Null: causal over query indices, q >= kv (upper left).
    const BlockMask* block_mask = nullptr;
    std::vector<int> batch_indices{};  ///< [B]; empty: 0 .. B-1
    ScoreMod score_mod{};
    std::optional<float> scale{};  ///< unset: 1 / sqrt(K_D)
    bool enable_gqa = false;
    TensorView lse{};  ///< [B, H, Q_LEN] float32, natural log; empty: not written
    Stream stream{};
  };

  /// Computes attention of query [B, H, Q_LEN, K_D] over the first kv_lens[b] tokens of each row
  /// into out [B, H, Q_LEN, V_D] of any dtype. Query i of row b has the position i, or as the block
  /// mask's `q_start` specifies. Every rank gets the whole output.
  /// REQUIRES: on a GPU, the strides of query, out and lse let B and Q_LEN be one dimension (as
  /// [B, Q_LEN, H, D] transposed has them), and a row that `batch_indices` names twice has the same
  /// length both times.
  /// @throws InvalidArgument before anything is written; the errors of StepPlan::run.
  /// On a GPU it runs after the work on `stream`, and blocks until it is done.
  /// Collective over the mesh.
  void forward(const ConstTensorView& query, const ConstTensorView& k_cache,
               const ConstTensorView& v_cache, std::span<const std::int64_t> kv_lens,
               const TensorView& out, const ForwardOptions& options) const;
  void forward(const ConstTensorView& query, const ConstTensorView& k_cache,
               const ConstTensorView& v_cache, std::span<const std::int64_t> kv_lens,
               const TensorView& out) const;

 private:
  class State;
  State& state() const;
  struct Translation;
  Translation translation(std::span<const std::int64_t> kv_len,
                          std::span<const int> batch_idx) const;
  SequenceId row(int batch_idx) const;
  std::vector<int> rows_or_all(std::span<const int> batch_idx, std::int64_t batch) const;
  std::vector<TokenSlot> slots_of(std::span<const int> batch_idx,
                                  std::span<const std::int64_t> input_pos) const;
  TensorView as_pool(const char* what, const ConstTensorView& cache) const;

  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
