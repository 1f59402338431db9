// Memory that all GPUs of one host store into: the windows of a group of ranks.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "comm/combine/peer/kernels/peer_window_view.hpp"
#include "comm/combine/peer/peer_room.hpp"
#include "core/posix/shared_memory.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh {

/// Why a group of ranks has no windows.
enum class PeerRefusal : std::uint8_t {
  kNone,
  kTooManyRanks,  ///< more than kMostPeerRanks
  kOtherHost,     ///< not all ranks are of one host; NCCL_HOSTID counts as the host's name
  kNoMemory,      ///< a rank's GPU has no room for its window
  kNotMapped,     ///< the system or the GPUs do not let a rank map another's memory
  kSlowLink,      ///< no NVLink: stores of 128 bytes need not arrive whole
};

/// Such as "rank 1 cannot map the memory of rank 3".
struct PeerRefused {
  PeerRefusal reason = PeerRefusal::kNone;
  Rank rank{};
  Rank peer{};
  std::string message(const Communicator& comm) const;
};

/// One rank's window, and its maps of the other ranks' windows. The memory is plain device memory,
/// mapped by CUDA IPC between processes; ranks that are threads of one process use the pointers.
///
/// No kernel waits for a peer longer than the deadline. A kernel whose wait times out notes it in
/// the window; from then on no kernel waits, and `check` throws.
///
/// Neither copied nor moved: kernels and graphs have its addresses. One thread at a time, and one
/// stream at a time: all combines and gathers of a group use the same slots.
class PeerWindow {
 public:
  struct Made {
    std::unique_ptr<PeerWindow> window;  ///< null if refused
    PeerRefused refused;                 ///< the same on all ranks
  };
  /// Makes and maps windows of `size_bytes`, a quarter of it for rows as words.
  /// REQUIRES: `device` is a GPU; `comm` outlives the window; equal sizes on all ranks.
  /// @throws Timeout, PeerLost.
  /// Collective.
  static Made make(Communicator& comm, Device device, std::size_t size_bytes);

  /// Unmaps. A rank frees its window after all ranks have unmapped it, but waits for them only
  /// until the deadline, and not after an error.
  ~PeerWindow();
  PeerWindow(const PeerWindow&) = delete;
  PeerWindow& operator=(const PeerWindow&) = delete;

  Rank rank() const { return comm_.rank(); }
  int ranks() const { return comm_.size(); }
  Device device() const { return device_; }
  PeerRoom room() const { return room_; }
  /// Thread blocks that a kernel on this window may have, so that those of all ranks of a GPU, and
  /// of the next kernel, are resident together.
  int most_blocks() const { return most_blocks_; }
  /// Whether some GPU is that of several ranks. They take turns on it while they wait.
  bool shares_gpus() const { return ranks_per_gpu_ > 1; }

  /// The window as kernels see it, and the place and size of its slots for a row form.
  PeerWindowView view() const;
  std::int64_t slots_offset(RowForm form) const;
  std::int64_t slot_bytes(RowForm form) const;

  /// @throws Timeout, the first time after a kernel's wait has timed out, naming the rank, the
  /// layer, the run and the missing data; BrokenGroup after that. Sends nothing.
  void check(std::string_view operation);
  /// Blocks until the stream is idle, at most for the communicator's deadline. @throws as `check`.
  void wait(Stream stream, std::string_view operation);

 private:
  PeerWindow(Communicator& comm, Device device, std::size_t size_bytes);
  template <class Endpoints>
  PeerRefused map(const Endpoints& all);
  void count_blocks();
  std::chrono::milliseconds device_deadline() const;

  struct Fault;

  Communicator& comm_;
  Device device_;
  PeerRoom room_;
  int ranks_per_gpu_ = 1;  // of the GPU that has the most
  int most_blocks_ = 1;
  int exceptions_ = 0;  // in flight when the window was made
  bool is_broken_ = false;
  bool is_alone_ = false;  // the others need not be waited for
  std::unique_ptr<SharedMemory> memory_;
  std::vector<std::shared_ptr<void>> maps_;  // [rank]; this rank's own is memory_
  std::unique_ptr<Fault> fault_;
};

}  // namespace kvmesh
