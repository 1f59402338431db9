// Mods over physical positions, for flex_attention, which reads the whole cache as one sequence.
// kvmesh's own kernels do not need them: they know the logical index of each page.
#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "runtime/torch_like/paged_state.hpp"

namespace kvmesh {

/// Everything that the translated mods capture.
struct PagedAttention::Translation {
  Buffer<std::int32_t> logical_of;  // [batch][physical page], -1: not this row's
  Buffer<std::int32_t> lengths;     // [batch]
  std::int32_t page_size;

  // (visible, logical position) of physical position `kv` for batch row `b`.
  std::pair<Expr, Expr> operator()(const Expr& b, const Expr& kv) const {
    const Expr block = logical_of.at(b, kv / page_size);
    const Expr logical = block * page_size + kv % page_size;
    return {block >= 0 && logical < lengths[b], logical};
  }
};

PagedAttention::Translation PagedAttention::translation(std::span<const std::int64_t> kv_len,
                                                        std::span<const int> batch_idx) const {
  const std::int64_t batch = !batch_idx.empty() ? std::ssize(batch_idx)
                             : !kv_len.empty()  ? std::ssize(kv_len)
                                                : std::ssize(state().rows);
  require(kv_len.empty() || std::ssize(kv_len) == batch,
          "PagedAttention: {} lengths for a batch of {}", kv_len.size(), batch);
  const auto n_pages = static_cast<std::size_t>(pages_per_rank() * state().mesh.kv_parallel());
  std::vector<std::int32_t> logical_of(static_cast<std::size_t>(batch) * n_pages, -1);
  std::vector<std::int32_t> lengths(static_cast<std::size_t>(batch),
                                    std::numeric_limits<std::int32_t>::max());
  for (std::int64_t length : kv_len) {
    require(length >= 0 && length <= lengths[0], "PagedAttention: a length of {}", length);
  }
  std::copy(kv_len.begin(), kv_len.end(), lengths.begin());
  std::size_t first = 0;
  for (int r : rows_or_all(batch_idx, batch)) {
    std::int32_t logical = 0;
    for (PageId page : pages(r)) {
      logical_of[first + static_cast<std::size_t>(physical_page(page))] = logical++;
    }
    first += n_pages;
  }
  return {Buffer<std::int32_t>(logical_of, static_cast<std::int32_t>(n_pages)),
          Buffer<std::int32_t>(lengths), static_cast<std::int32_t>(state().page_size())};
}

MaskMod PagedAttention::get_mask_mod(const MaskMod& mask_mod, std::span<const std::int64_t> kv_len,
                                     std::span<const int> batch_idx) const {
  const Translation translate = translation(kv_len, batch_idx);
  return MaskMod([&](const Expr& b, const Expr& h, const Expr& q, const Expr& physical) {
    const auto [valid, logical] = translate(b, physical);
    return valid && mask_mod(b, h, q, logical);
  });
}

ScoreMod PagedAttention::get_score_mod(const ScoreMod& score_mod,
                                       std::span<const std::int64_t> kv_len,
                                       std::span<const int> batch_idx) const {
  const Translation translate = translation(kv_len, batch_idx);
  return ScoreMod(
      [&](const Expr& score, const Expr& b, const Expr& h, const Expr& q, const Expr& physical) {
        const auto [valid, logical] = translate(b, physical);
        return where(valid, score_mod(score, b, h, q, logical),
                     -std::numeric_limits<float>::infinity());
      });
}

}  // namespace kvmesh
