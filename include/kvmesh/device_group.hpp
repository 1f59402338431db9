// The devices of a group of ranks, and what they have for exchanging rows.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "kvmesh/communicator.hpp"
#include "kvmesh/nccl.hpp"
#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// One rank's device among those of the other ranks of a communicator. On the CPU, and for GPUs
/// without NCCL, rows go over the communicator; GPUs may have an NCCL group, too.
///
/// Neither copied nor moved: a Mesh owns it, and caches point to it. One thread at a time.
///
/// The end of a group with an NCCL group of its own is collective: where a rank leaves while others
/// are in the last combine, what NCCL was to send them over a network is lost. So there the
/// destructor waits until the devices of all ranks are done, but no longer than the communicator's
/// deadline, and for nobody after an error of the NCCL group or while an exception passes.
class DeviceGroup {
 public:
  /// Makes an NCCL group if `makes_nccl`, `device` is a GPU, this build has NCCL, and no two ranks
  /// share a GPU. (If the environment's NCCL_HOSTID names another host for each, they may share:
  /// NCCL goes through its network transport.)
  /// REQUIRES: equal arguments on all ranks, but for the GPU's number.
  /// @throws Timeout, PeerLost, NcclError, and Error if the device failed: all on GPUs only.
  /// Collective, and takes a second or so, where `makes_nccl` and `device` is a GPU; else it sends
  /// nothing.
  DeviceGroup(std::shared_ptr<Communicator> comm, Device device, bool makes_nccl = true);
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  /// The host's way between the ranks.
  Communicator& comm() const { return *comm_; }
  /// This rank's.
  Device device() const { return device_; }
  /// The ranks' GPUs as an NCCL group; null if they have none. Then a combine of theirs goes by way
  /// of the host, and cannot be captured in a graph. Sends nothing.
  NcclGroup* nccl() const { return nccl_.get(); }

  /// Takes an engine's NCCL group over the same ranks, in their order: its communicator
  /// (NcclGroup::borrow), or one made from an id that it brings. A borrowed communicator is the
  /// engine's to abort when a wait has failed, before the cache goes. REQUIRES: no cache has been
  /// made. @throws InvalidArgument on the CPU, if there is an NCCL group already, or if size, rank
  /// or device of `group` are not this group's. Sends nothing.
  void use_nccl(NcclGroup group);

  /// Waits until the device has done all work given to `stream`, no longer than the communicator's
  /// deadline. Use it instead of CUDA's own waits, which a peer that died in the middle of a
  /// combine would make endless. On the CPU all is done already. Ranks in errors are `comm`'s.
  /// @throws Timeout, NcclError; Error if the device failed.
  void wait(Stream stream, std::string_view operation);
  /// The same, until `is_done` returns true: for events. What it throws breaks the NCCL group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation);

 private:
  void leave_together() noexcept;

  std::shared_ptr<Communicator> comm_;
  Device device_;
  int exceptions_ = 0;  // that passed already when the NCCL group was taken
  std::unique_ptr<NcclGroup> nccl_;
};

}  // namespace kvmesh
