// A window as kernels see it: plain, for host and device.
#pragma once

#include <cstdint>

#include "core/pod/combine_target.hpp"

namespace kvmesh {

/// The most thread blocks of a kernel on a window.
inline constexpr int kMostPeerBlocks = 1024;

enum class PeerOperation : std::uint32_t { kCombine, kGatherQueries };
enum class PeerPhase : std::uint32_t { kRows, kArrival };

/// The report of a kernel whose wait has timed out. `is_set` is written last.
struct PeerFault {
  std::uint32_t is_set;
  std::int32_t late;   ///< the rank that was waited for
  std::int32_t layer;  ///< of the model; -1: not given
  std::int32_t run;    ///< which run of its plan
  PeerOperation operation;
  PeerPhase phase;
};

/// The windows of all ranks, and this rank's own notes. Trivially copyable.
struct PeerWindowView {
  unsigned char* windows[kMostPeerRanks];  ///< [rank], as this rank maps them
  /// [kMostPeerBlocks], on the device: the last epoch, one per thread block. A kernel's blocks read
  /// and write their own, so that none reads what another has changed already; the last block also
  /// writes those of the blocks that its kernel does not have.
  std::uint32_t* epochs;
  std::uint32_t* is_broken;  ///< on the device
  PeerFault* fault;          ///< in host memory
  std::uint64_t deadline_ns;
  bool shares_gpus;  ///< some GPU is that of several ranks
};

/// A kernel's call on the windows, and what its errors say of it. Trivially copyable.
struct PeerCall {
  PeerWindowView window;
  int rank, ranks;
  PeerOperation operation;
  int layer;  ///< of the model; -1: not given
  int run;    ///< runs of this plan before
};

/// An arrival is 16 bytes of the window, of which the first four are the epoch.
inline constexpr std::int64_t kArrivalBytes = 16;

}  // namespace kvmesh
