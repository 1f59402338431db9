#include "launch/bench/nccl_exchange.hpp"

#include <nccl.h>

#include <chrono>

namespace kvmesh::bench {
namespace {

void check(const NcclGroup& group, ncclResult_t result) {
  if (result != ncclSuccess && result != ncclInProgress) {
    throw NcclError(group.rank(), "bench: plain exchange", ncclGetErrorString(result));
  }
}

}  // namespace

void nccl_exchange(NcclGroup& group, std::span<const Outgoing> outgoing,
                   std::span<const Incoming> incoming, Stream stream) {
  auto* comm = static_cast<ncclComm_t>(group.handle());
  auto* native = static_cast<cudaStream_t>(stream.handle);
  check(group, ncclGroupStart());
  for (const Outgoing& message : outgoing) {
    check(group, ncclSend(message.bytes.data(), message.bytes.size(), ncclInt8, message.to.value,
                          comm, native));
  }
  for (const Incoming& message : incoming) {
    check(group, ncclRecv(message.bytes.data(), message.bytes.size(), ncclInt8, message.from.value,
                          comm, native));
  }
  ncclResult_t result = ncclGroupEnd();
  // A communicator that does not block may need longer: once it is done, the work is on the stream.
  const auto late = std::chrono::steady_clock::now() + group.deadline();
  while (result == ncclInProgress && std::chrono::steady_clock::now() < late) {
    check(group, ncclCommGetAsyncError(comm, &result));
  }
  if (result == ncclInProgress) {
    throw NcclError(group.rank(), "bench: plain exchange", "NCCL did not take it in time");
  }
  check(group, result);
}

}  // namespace kvmesh::bench
