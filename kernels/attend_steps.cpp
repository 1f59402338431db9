#include "kernels/attend_steps.hpp"

#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "kernels/page_visit.hpp"

namespace kvmesh {
namespace {

// Positions are int32, and so is the end of a range of them.
constexpr std::int64_t kMaxPosition = std::numeric_limits<std::int32_t>::max();

void check_indptr(const char* what, const std::vector<std::int64_t>& indptr, std::size_t batch,
                  std::int64_t last) {
  require(indptr.size() == batch + 1 && indptr.front() == 0 && indptr.back() == last &&
              std::is_sorted(indptr.begin(), indptr.end()),
          "attention: {} must rise from 0 to {} in {} steps", what, last, batch);
}

void check_pages(const AttentionShape& shape, const AttentionBatch& batch, std::size_t s) {
  const std::int64_t kv_len = batch.kv_lens[s];
  require(kv_len >= 0 && kv_len <= kMaxPosition,
          "attention: sequence {} has length {}, which is not in [0, 2^31)", s, kv_len);
  for (std::int64_t i = batch.page_indptr[s]; i < batch.page_indptr[s + 1]; ++i) {
    const LocalPage& page = batch.pages[static_cast<std::size_t>(i)];
    const bool rising = i == batch.page_indptr[s] ||
                        batch.pages[static_cast<std::size_t>(i - 1)].logical < page.logical;
    require(page.page >= 0 && page.logical >= 0 && rising,
            "attention: the pages of sequence {} must be valid and in rising logical order", s);
    require(page.logical < kMostPages, "attention: sequence {} has logical page {} of at most {}",
            s, page.logical, kMostPages);
    require(static_cast<std::int64_t>(page.logical) * shape.page_size < kv_len,
            "attention: logical page {} of sequence {} lies past its length {}", page.logical, s,
            kv_len);
  }
}

}  // namespace

void check_attention(const AttentionShape& shape, const AttentionBatch& batch) {
  require(shape.q_heads > 0 && shape.kv_heads > 0 && shape.q_heads % shape.kv_heads == 0,
          "attention: {} query heads do not divide over {} kv heads", shape.q_heads,
          shape.kv_heads);
  require(shape.k_dim > 0 && shape.v_dim > 0 && shape.k_dim <= kMaxHeadDim &&
              shape.v_dim <= kMaxHeadDim,
          "attention: head dims must be in [1, {}], are {} (k) and {} (v)", kMaxHeadDim,
          shape.k_dim, shape.v_dim);
  require(shape.page_size > 0, "attention: page_size is {}, must be at least 1", shape.page_size);
  const std::size_t sequences = batch.kv_lens.size();
  require(!batch.q_indptr.empty(), "attention: q_indptr is empty");
  check_indptr("q_indptr", batch.q_indptr, sequences, batch.q_indptr.back());
  require(batch.q_indptr.back() <= kMaxPosition, "attention: {} queries are too many for one plan",
          batch.q_indptr.back());
  check_indptr("page_indptr", batch.page_indptr, sequences,
               static_cast<std::int64_t>(batch.pages.size()));
  require(batch.q_positions.empty() ||
              static_cast<std::int64_t>(batch.q_positions.size()) == batch.q_indptr.back(),
          "attention: {} query positions for {} queries", batch.q_positions.size(),
          batch.q_indptr.back());
  for (std::int64_t position : batch.q_positions) {
    require(position > -kMaxPosition && position < kMaxPosition,
            "attention: query position {} does not fit in int32", position);
  }
  require(batch.counts_sinks.empty() || batch.counts_sinks.size() == sequences,
          "attention: counts_sinks has {} sequences of {}", batch.counts_sinks.size(), sequences);
  for (std::size_t s = 0; s < sequences; ++s) check_pages(shape, batch, s);
}

}  // namespace kvmesh
