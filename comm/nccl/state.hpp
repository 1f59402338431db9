// The state of an NcclGroup: the communicator, and calls on it whose waits are bounded. Only for
// sources that are built with NCCL.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <vector>

#include "kvmesh/nccl.hpp"

namespace kvmesh {

/// The communicator does not block (unless a borrowed one does): a call returns at once, and
/// `poll` blocks until NCCL has done the host part of it.
struct NcclGroup::State {
  ncclComm_t comm = nullptr;
  bool is_owned = true;
  bool is_broken = false;
  Rank rank;
  int size = 1;
  int device = 0;
  std::vector<Rank> names{};  ///< [rank] of errors; empty: the ranks themselves
  std::chrono::milliseconds deadline = std::chrono::seconds(60);

  State() = default;
  ~State() { abort(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Rank name_of(Rank of) const {
    return names.empty() ? of : names[static_cast<std::size_t>(of.value)];
  }
  /// @throws BrokenGroup if the group failed or was closed before.
  void require_whole(std::string_view operation) const;

  /// Polls until the call that returned `code` is done. Blocks. @throws Timeout, NcclError.
  void poll(ncclResult_t code, std::string_view operation);

  /// Several sends, receives and collectives as one: `calls` returns the first code that is not
  /// good.
  template <class Calls>
  void grouped(std::string_view operation, const Calls& calls) {
    poll(ncclGroupStart(), operation);
    const ncclResult_t inside = calls();
    const ncclResult_t end = ncclGroupEnd();
    poll(is_good(inside) ? end : inside, operation);
  }
  static bool is_good(ncclResult_t code) { return code == ncclSuccess || code == ncclInProgress; }

  /// Breaks the group and throws.
  [[noreturn]] void fail(ncclResult_t code, std::string_view operation);
  [[noreturn]] void fail_late(std::string_view operation);

  /// Calls `is_done` with the group's device current. If it throws, the group is broken.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation);
  void wait(cudaStream_t stream, std::string_view operation);
  void close();
  void abort();

 private:
  bool give_up_comm(ncclResult_t (*end)(ncclComm_t), std::chrono::milliseconds at_most);
};

}  // namespace kvmesh
