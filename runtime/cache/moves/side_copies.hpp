// This rank's part of the copies of pages that move beside the steps.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "core/move_stream.hpp"
#include "runtime/cache/moves/parcels.hpp"
#include "runtime/tiers/host_memory.hpp"

namespace kvmesh {

/// Copies pages between ranks on a stream of its own, and waits for nothing. The holder of a copy
/// reads the page from the source's pools if it maps them. Otherwise the source packs the tokens in
/// host memory, and the holder unpacks them:
///
///   source                       holder of the copy
///   prepare: packs
///                   exchange     once all that is on all ranks' streams is done
///                                copies, out of the map or of what came
///
/// `advance` returns true when the stream has done the packing, and again when it has done the
/// copies.
class SideCopies {
 public:
  /// `make_stream` is called by the first copies. REQUIRES: all references outlive it.
  SideCopies(const PoolStorage& pools, const PeerPools& peers, Communicator& kv,
             const Membership& members, Device device,
             std::function<std::unique_ptr<MoveStream>()> make_stream);

  /// Takes copies, [group], that begin after the work that is on `after` now, and packs what this
  /// rank gives to ranks that do not map its pools. REQUIRES: earlier copies are done.
  void prepare(std::span<const std::vector<PageCopy>> copies, std::optional<Stream> after);
  /// Exchanges what was packed, and lets the copies to this rank begin. Collective over the kv axis
  /// if a rank does not map another one's pools that pages move from.
  void exchange(std::string_view operation);
  /// Starts the parcels that are left, as many as the stream takes at once. Returns whether all are
  /// done.
  /// @throws Error if the device, or a copy, has failed.
  bool advance();
  /// Starts no more copies.
  void give_up() { waiting_.clear(); }

  /// Returns whether the started copies are done. @throws Error if the device has failed.
  bool is_done() { return !stream_ || stream_->is_done(); }
  /// Later work on `stream` runs after the started copies; on the CPU the call blocks until they
  /// are done.
  void before(Stream stream) {
    if (stream_) stream_->before(stream);
  }

 private:
  /// One parcel of a group: to pack for `peer`, or to copy from it.
  struct Batch {
    std::size_t group = 0;
    Rank peer{};
    bool packs = false;
  };
  static void allocate(std::deque<PageParcels>& groups, Parcels& (PageParcels::*parcels)(),
                       HostMemory& memory, Device device);
  void start(const Batch& batch);

  const PoolStorage& pools_;
  const PeerPools& peers_;
  Communicator& kv_;
  const Membership& members_;
  Device device_;
  std::function<std::unique_ptr<MoveStream>()> make_stream_;
  std::deque<PageMover> movers_;    // [group]
  std::deque<PageParcels> groups_;  // [group]
  std::deque<Batch> waiting_;
  std::shared_ptr<std::atomic<bool>> failed_;  // a copy on the stream
  HostMemory given_, taken_;                   // rows of parcels; kept, since pinning takes long
  std::unique_ptr<MoveStream> stream_;         // ends first: its copies use the others
};

}  // namespace kvmesh
