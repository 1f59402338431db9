#include "comm/nccl/state.hpp"

#include <future>
#include <thread>

#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/device_scope.hpp"
#include "core/cuda/memory.hpp"
#include "core/threads/back_off.hpp"

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

// It takes some 200 ms where nothing is in its way.
constexpr auto kAbortTime = std::chrono::seconds(2);

}  // namespace

void NcclGroup::State::require_whole(std::string_view operation) const {
  if (!is_broken && comm != nullptr) return;
  throw BrokenGroup(fmt::format(
      "{}: this NCCL group failed or was closed before and cannot be used again", operation));
}

void NcclGroup::State::poll(ncclResult_t code, std::string_view operation) {
  const Clock::time_point start = Clock::now();
  while (code == ncclInProgress) {
    const Clock::duration waited = Clock::now() - start;
    if (waited >= deadline) fail_late(operation);
    back_off(waited);
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
    code = asked == ncclSuccess ? state : asked;
  }
  if (code != ncclSuccess) fail(code, operation);
}

void NcclGroup::State::wait_until(const std::function<bool()>& is_done,
                                  std::string_view operation) {
  require_whole(operation);
  const DeviceScope scope(device);
  const auto ask = [&] {
    try {
      return is_done();
    } catch (...) {
      is_broken = true;
      throw;
    }
  };
  const Clock::time_point start = Clock::now();
  while (!ask()) {
    const Clock::duration waited = Clock::now() - start;
    if (waited >= deadline) fail_late(operation);
    ncclResult_t code = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm, &code);
    if (asked != ncclSuccess) code = asked;
    if (!is_good(code)) fail(code, operation);
    back_off(waited);
  }
}

void NcclGroup::State::wait(cudaStream_t stream, std::string_view operation) {
  wait_until([&] { return cuda_memory::is_done({stream}, operation); }, operation);
}

void NcclGroup::State::fail(ncclResult_t code, std::string_view operation) {
  const char* details = comm != nullptr ? ncclGetLastError(comm) : ncclGetLastError(nullptr);
  std::string reason = ncclGetErrorString(code);
  if (details != nullptr && *details != '\0') reason += fmt::format(" ({})", details);
  abort();
  throw NcclError(name_of(rank), std::string(operation), reason);
}

void NcclGroup::State::fail_late(std::string_view operation) {
  std::vector<Rank> others;
  for (int r = 0; r < size; ++r) {
    if (r != rank.value) others.push_back(name_of(Rank{r}));
  }
  abort();
  throw Timeout(name_of(rank), std::move(others), std::string(operation), deadline);
}

void NcclGroup::State::close() {
  if (comm == nullptr || is_broken || !is_owned) return;
  constexpr std::string_view kOperation = "close an NCCL group";
  const Clock::time_point start = Clock::now();
  const DeviceScope scope(device);
  poll(ncclCommFinalize(comm), kOperation);
  const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start);
  if (!give_up_comm(ncclCommDestroy, deadline - waited)) fail_late(kOperation);
}

/// Aborts an owned communicator. ncclCommAbort first stops NCCL's kernels and its sending threads,
/// then frees this rank's resources; it notifies no peer.
void NcclGroup::State::abort() {
  is_broken = true;
  if (comm == nullptr || !is_owned) return;
  static_cast<void>(give_up_comm(ncclCommAbort, kAbortTime));
}

/// Runs ncclCommAbort or ncclCommDestroy on its own thread, because both may block: both wait until
/// the peers on this machine have disconnected, and abort also waits until every graph that
/// captured the communicator is destroyed. The caller that handles the error may be about to
/// destroy those graphs. (Before destroy the communicator was finalized.) Returns true if `end`
/// returned within `at_most`.
bool NcclGroup::State::give_up_comm(ncclResult_t (*end)(ncclComm_t),
                                    std::chrono::milliseconds at_most) {
  std::promise<void> promise;
  const std::future<void> done = promise.get_future();
  std::thread([end, comm = std::exchange(comm, nullptr), device = device,
               promise = std::move(promise)]() mutable {
    static_cast<void>(cudaSetDevice(device));
    static_cast<void>(end(comm));
    promise.set_value();
  }).detach();
  return done.wait_for(at_most) == std::future_status::ready;
}

}  // namespace kvmesh
