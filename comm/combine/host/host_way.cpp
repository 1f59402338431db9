#include "comm/combine/host/host_way.hpp"

#include <algorithm>
#include <cmath>

#include "comm/combine/host/gather.hpp"
#include "comm/combine/host/output_rows.hpp"
#include "core/check.hpp"
#include "core/numbers/softmax_merge.hpp"

namespace kvmesh {
void HostWay::plan(const CombineShape& shape, const CombineOptions& options, Stream) {
  plan_ = plan_host_combine(shape, options, rows_->rank(), rows_->ranks());
  plan_->digest = digest_of(shape, options, given_);
}

void HostWay::check_run(const Partial& mine, const CombineOutput& output, DeviceKind device) const {
  require(plan_.has_value(), "combine: run without a plan");
  check_tensors(mine, output, plan_->map.shape(), plan_->result(), device);
}

CombineStrategy HostWay::strategy() const {
  return plan_ ? plan_->strategy : CombineStrategy::kAllToAll;
}

std::size_t HostWay::workspace_bytes() const {
  return rows_->size_bytes() + lses_.size_bytes() + row_.size() * sizeof(float);
}

void HostWay::run(const Partial& mine, const CombineOutput& output, Stream) {
  rows_->identify(plan_->digest);
  row_.resize(static_cast<std::size_t>(plan_->map.dim()));
  if (plan_->map.ranks() == 1) {
    copy_mine(mine, output);
  } else if (plan_->gathers) {
    scatter_and_gather(mine, output);
  } else {
    merge_by_owners(mine, output);
  }
}

void HostWay::merge_by_owners(const Partial& mine, const CombineOutput& output) {
  if (plan_->strategy == CombineStrategy::kReduceScatter) {
    reduce_scatter(mine, output);
  } else {
    all_to_all(mine, output);
  }
}

void HostWay::scatter_and_gather(const Partial& mine, const CombineOutput& output) {
  merge_by_owners(mine, room_for_own_rows(*rows_, *plan_, output));
  gather_rows(*rows_, *plan_, output, "combine: gather the merged rows");
}

void HostWay::copy_mine(const Partial& mine, const CombineOutput& output) {
  const CombineBlock all = plan_->map.all();
  for (std::int64_t t = 0; t < all.tokens.end; ++t) {
    for (std::int64_t h = 0; h < all.heads.end; ++h) {
      const float lse = plan_->map.takes_part(t, 0) ? lse_of(mine, t, h) : kNoKeys;
      const float merged = merged_lse(std::span(&lse, 1));
      // The weight of any other row is 1.
      const bool is_constant = merged == kNoKeys || std::isnan(merged);
      if (is_constant) std::fill(row_.begin(), row_.end(), merged == kNoKeys ? 0.0f : merged);
      store_row(output, t, h, is_constant ? row_.data() : o_row(mine, t, h), merged);
    }
  }
}

void HostWay::start_reading() {
  readers_.clear();
  for (int rank = 0; rank < plan_->map.ranks(); ++rank) {
    const float* rows = rows_->incoming(rank).data();
    const std::int64_t count = plan_->received_rows[static_cast<std::size_t>(rank)];
    // all_to_all takes this rank's own rows from the partial: there may be no buffer.
    const float* lses = plan_->sends_o_apart ? rows_->incoming_lses(rank).data()
                        : rows != nullptr    ? rows + count * plan_->map.dim()
                                             : nullptr;
    readers_.push_back({rank, rows, lses});
  }
}

}  // namespace kvmesh
