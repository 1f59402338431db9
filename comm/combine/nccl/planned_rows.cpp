#include "comm/combine/nccl/planned_rows.hpp"

#include <utility>

#include "core/cuda/memory.hpp"

namespace kvmesh {
namespace {

// cudaMemcpyAsync's, from pageable memory.
constexpr std::size_t kTakenAtOnce = 64 << 10;

}  // namespace

void PlannedRows::plan(DeviceCombinePlan next, Stream stream, const std::function<void()>& wait) {
  if (is_planned_ && next == plan_) return;
  if (!is_planned_ || makes_other_messages(next)) ++generation_;
  is_planned_ = false;  // until all is where the plan says
  plan_ = std::move(next);
  reserve(stream);
  upload(stream, wait);
  is_planned_ = true;
}

/// Returns true if a graph that was captured with the current plan would send other messages than
/// the next plan needs.
bool PlannedRows::makes_other_messages(const DeviceCombinePlan& next) const {
  DeviceCombinePlan as_before = next;
  as_before.token_places = plan_.token_places;  // only these are read on the device
  return as_before != plan_ || next.token_places.empty() != plan_.token_places.empty();
}

void PlannedRows::reserve(Stream stream) {
  bool moved = false;
  const auto grow = [&](auto& array, std::int64_t count) {
    const bool grows = array.reserve(static_cast<std::size_t>(count));
    moved |= grows;
    return grows;
  };
  grow(table_, std::ssize(device_table(plan_)));
  if (grow(send_, plan_.packs() ? plan_.sent_floats : plan_.reduced_floats())) {
    // A graph also sends rows past those of a step.
    cuda_memory::fill(send_.data(), 0, send_.capacity() * sizeof(float), stream);
  }
  grow(receive_, plan_.packs() ? plan_.received_floats : plan_.block_floats());
  if (!plan_.packs()) grow(lses_, (plan_.ranks + 1) * plan_.rows());
  if (!moved) return;
  host_table_.clear();  // what was uploaded is gone
  ++generation_;
}

void PlannedRows::upload(Stream stream, const std::function<void()>& wait) {
  std::vector<std::byte> table = device_table(plan_);
  if (table == host_table_) return;
  // From pageable memory: the runtime has taken the bytes when it returns. It may wait for the
  // stream until it can, so more than it takes at once is waited for here, where waits end.
  if (table.size() > kTakenAtOnce) wait();
  cuda_memory::copy_bytes_on(stream, table_.data(), table.data(), table.size());
  host_table_ = std::move(table);
}

}  // namespace kvmesh
