#include "comm/combine/nccl/row_transfer.hpp"

#include <algorithm>
#include <vector>

#include "comm/nccl/state.hpp"
#include "core/cuda/device_scope.hpp"

namespace kvmesh {
namespace {

bool has_rows(const DeviceCombinePlan& plan, const std::vector<RowMessage>& messages) {
  for (int r = 0; r < plan.ranks; ++r) {
    if (r != plan.rank && messages[static_cast<std::size_t>(r)].rows > 0) return true;
  }
  return false;
}

}  // namespace

void transfer_rows(NcclGroup::State& group, std::span<const Rank> members,
                   const DeviceCombinePlan& plan, const float* send, float* receive, Stream stream,
                   std::string_view operation) {
  group.require_whole(operation);
  if (!has_rows(plan, plan.sent) && !has_rows(plan, plan.received)) return;
  const DeviceScope scope(group.device);
  const auto on = static_cast<cudaStream_t>(stream.handle);
  const auto floats = [&](const RowMessage& message) {
    return static_cast<std::size_t>(message.rows * plan.row_floats);
  };
  group.grouped(operation, [&] {
    ncclResult_t code = ncclSuccess;
    for (int r = 0; r < plan.ranks && NcclGroup::State::is_good(code); ++r) {
      if (r == plan.rank) continue;
      const auto at = static_cast<std::size_t>(r);
      const RowMessage& out = plan.sent[at];
      const RowMessage& in = plan.received[at];
      const int peer = members.empty() ? r : members[at].value;
      if (out.rows > 0) {
        code = ncclSend(send + out.offset, floats(out), ncclFloat, peer, group.comm, on);
      }
      if (in.rows > 0 && NcclGroup::State::is_good(code)) {
        code = ncclRecv(receive + in.offset, floats(in), ncclFloat, peer, group.comm, on);
      }
    }
    return code;
  });
}

}  // namespace kvmesh
