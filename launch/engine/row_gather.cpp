#include "launch/engine/row_gather.hpp"

#include <algorithm>
#include <numeric>

namespace kvmesh::engine {

void RowGather::operator()(std::span<const std::int64_t> rows, std::int64_t tokens,
                           std::span<const float> slice, std::span<float> all,
                           std::string_view operation) {
  if (comm_->size() == 1) {
    std::ranges::copy(slice, all.begin());
    return;
  }
  counts_.clear();
  for (int rank = 0; rank < comm_->size(); ++rank) {
    std::int64_t width = 0;
    for (std::int64_t count : rows) width += share_of(count, rank, comm_->size()).size();
    counts_.push_back(static_cast<std::size_t>(tokens * width) * sizeof(float));
  }
  // One token of one matrix: rank order is row order, so the rows are in place.
  const bool in_order = tokens == 1 && rows.size() == 1;
  if (!in_order) packed_.resize(all.size());
  all_gather_v(*comm_, std::as_bytes(slice), counts_,
               std::as_writable_bytes(in_order ? all : std::span(packed_)), operation);
  if (!in_order) unpack(rows, tokens, all);
}

void RowGather::unpack(std::span<const std::int64_t> rows, std::int64_t tokens,
                       std::span<float> all) const {
  const std::int64_t width = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
  const float* from = packed_.data();
  for (int rank = 0; rank < comm_->size(); ++rank) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      float* to = all.data() + t * width;
      for (std::int64_t count : rows) {
        const IndexRange share = share_of(count, rank, comm_->size());
        std::copy_n(from, share.size(), to + share.begin);
        from += share.size();
        to += count;
      }
    }
  }
}

}  // namespace kvmesh::engine
