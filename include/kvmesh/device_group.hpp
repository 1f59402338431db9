// The devices of a group of ranks, and how those devices exchange rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kvmesh/api.h"
#include "kvmesh/communicator.hpp"
#include "kvmesh/nccl.hpp"
#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"

namespace KVMESH_API kvmesh {

class PeerWindow;
class Subset;
struct WayTable;

/// How the ranks of a group lie on hosts: rank r is on host r / per_host.
struct HostLayout {
  int hosts = 1;
  int per_host = 1;
  /// Whether there are several hosts with several ranks each.
  bool is_hierarchy() const { return hosts > 1 && per_host > 1; }
};
/// Returns the layout of ranks with these hosts, one name (or hash of it) per rank; one host of all
/// ranks if they lie otherwise: unevenly, or the ranks of a host do not follow one another.
HostLayout host_layout_of(std::span<const std::uint64_t> host_of_rank);

/// One rank's device in a group of ranks. Rows are exchanged through the communicator on the CPU,
/// and on GPUs that have no other way. GPUs may have an NCCL group, and those of one host windows
/// into which the others store.
///
/// Neither copied nor moved: a Mesh owns it, and caches point to it. One thread at a time.
///
/// Destroying a group that owns an NCCL communicator is collective: if one rank aborted it while
/// other ranks were in the last combine, the data that NCCL still had to send over a network would
/// be lost. The destructor therefore waits until the devices of all ranks are idle, but not past
/// the communicator's deadline. It waits for no rank after an error of the NCCL group or while an
/// exception unwinds the stack.
class DeviceGroup {
 public:
  /// Makes an NCCL group if `makes_nccl` is set, `device` is a GPU, this build has NCCL, and no two
  /// ranks share a GPU. (Ranks may share a GPU if the environment's NCCL_HOSTID names a different
  /// host for each: NCCL then uses its network transport.)
  /// Makes windows of `peer_window_bytes` per rank if it is not 0, `device` is a GPU, and the ranks
  /// can map one another's memory over NVLink.
  /// REQUIRES: equal arguments on all ranks, except the GPU's number.
  /// @throws Timeout, PeerLost, NcclError, and Error if the device failed: all on GPUs only.
  /// Collective if `device` is a GPU and an NCCL group (which takes about a second) or windows are
  /// to be made. Otherwise it sends nothing.
  DeviceGroup(std::shared_ptr<Communicator> comm, Device device, bool makes_nccl = true,
              std::size_t peer_window_bytes = 0);
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  /// The communicator between the hosts.
  Communicator& comm() const { return *comm_; }
  /// This rank's device.
  Device device() const { return device_; }
  /// The NCCL group of the ranks' GPUs; null if they have none. Without one, and without
  /// windows, a combine on GPUs goes through the host and cannot be captured in a graph. Sends
  /// nothing.
  NcclGroup* nccl() const { return nccl_.get(); }
  /// The ranks' windows; null if they have none: see `no_peer_window`. Sends nothing.
  PeerWindow* peer_window() const { return peer_window_.get(); }
  /// Why there are no windows. Empty if there are.
  const std::string& no_peer_window() const { return no_peer_window_; }

  /// The hosts of the ranks; one until a mesh has said otherwise.
  const HostLayout& hosts() const { return hosts_; }
  /// Says how the ranks lie on hosts. Makes windows for the ranks of each host if windows were
  /// asked for, the group has none, and there are several hosts of several ranks. REQUIRES: equal
  /// on all ranks; no cache has been made.
  /// @throws InvalidArgument if it is a layout of more or fewer ranks; Timeout, PeerLost.
  /// Collective if windows are to be made. Otherwise it sends nothing.
  void set_hosts(const HostLayout& hosts);
  /// The windows of the ranks of this rank's host; null if they have none of their own, or share
  /// GPUs. The same on all ranks of a host. Sends nothing.
  PeerWindow* host_window() const { return host_window_.get(); }

  /// Makes the table by which combines choose their way (docs/design.md): reads this machine's, or
  /// measures the ways and stores it, in at most some tenths of a second plus the time in which
  /// NCCL connects the ranks. A mesh calls it; an engine may again, after `use_nccl`.
  /// KVMESH_COMBINE_TABLE of rank 0 says whether a table is used. REQUIRES: no cache has been made.
  /// @throws Timeout, PeerLost, NcclError; InvalidArgument if an environment variable is invalid;
  /// Error if a device failed.
  /// Collective if the ranks have several ways; otherwise it sends nothing.
  void prepare_ways();
  /// The table; null if there is none. Sends nothing.
  const WayTable* way_table() const { return way_table_.get(); }

  /// Takes an engine's NCCL group over the same ranks in the same order: one over the engine's own
  /// communicator (NcclGroup::borrow), or one made from an id that the engine distributes. After a
  /// failed wait the engine must abort a borrowed communicator before it destroys the cache. Sends
  /// nothing.
  /// REQUIRES: no cache has been made.
  /// @throws InvalidArgument on the CPU, if there is an NCCL group already, or if size, rank or
  /// device of `group` differ from this group's.
  void use_nccl(NcclGroup group);

  /// Blocks until the device has done all work on `stream`, at most for the communicator's
  /// deadline. Use it instead of CUDA's own waits, which never return if a peer died in the middle
  /// of a combine. On the CPU it returns at once. Errors name the ranks of `comm`.
  /// @throws Timeout, NcclError; Error if the device failed.
  void wait(Stream stream, std::string_view operation);
  /// Blocks in the same way until `is_done` returns true, for example for an event. An exception
  /// from `is_done` breaks the NCCL group.
  void wait_until(const std::function<bool()>& is_done, std::string_view operation);

 private:
  void leave_together() noexcept;

  std::shared_ptr<Communicator> comm_;
  Device device_;
  HostLayout hosts_;
  int exceptions_ = 0;  // in flight when the NCCL group was taken
  std::unique_ptr<NcclGroup> nccl_;
  std::unique_ptr<PeerWindow> peer_window_;
  std::string no_peer_window_ = "none were asked for";
  std::size_t window_bytes_ = 0;
  std::unique_ptr<Subset> host_comm_;  // of the ranks of this host, for their windows
  std::unique_ptr<PeerWindow> host_window_;
  std::shared_ptr<const WayTable> way_table_;
};

}  // namespace kvmesh
