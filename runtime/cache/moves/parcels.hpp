// The pages of a layer group that this rank gives to others and takes from them.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "kvmesh/communicator.hpp"
#include "kvmesh/membership.hpp"
#include "runtime/memory/page_mover.hpp"
#include "runtime/memory/peer_pools.hpp"

namespace kvmesh {

/// The pages that go from one rank to another, in the order of the copies.
struct Parcel {
  MoveEnd packed() const { return {.packed = bytes.data(), .packed_owner = owner}; }

  bool mapped = false;  ///< the holder of the copies reads the source's pools
  std::vector<PageMove> moves{};
  std::size_t packed_bytes = 0;         ///< of the tokens; 0 if mapped
  std::span<std::byte> bytes{};         ///< what is sent: the tokens, or a signal
  std::shared_ptr<const void> owner{};  ///< of the bytes, as PageMoves::packed_owner
};
using Parcels = std::map<Rank, Parcel>;  // by the other rank

/// Sorts copies between ranks. REQUIRES: all but the copies outlive it, `members` are of `kv`.
class PageParcels {
 public:
  PageParcels(const PageMover& mover, const PeerPools& peers, Communicator& kv,
              const Membership& members)
      : mover_(mover), peers_(peers), kv_(kv), members_(members) {}

  void add(const PageCopy& copy);
  Parcels& outgoing() { return outgoing_; }
  Parcels& incoming() { return incoming_; }
  /// Where this rank reads an incoming parcel: the source's pools, or what was sent.
  MoveEnd source_of(Rank source, const Parcel& parcel) const;
  /// Whether some rank gives pages to one that does not map its pools. Equal on all ranks.
  bool has_messages() const { return has_messages_; }
  /// Sends the bytes of parcels that have some, and receives those of others. Collective over the
  /// kv axis.
  void exchange(const Parcels& give, Parcels& take, std::string_view operation) const;

 private:
  void add(Parcel& parcel, const PageCopy& copy, bool mapped) const;

  const PageMover& mover_;
  const PeerPools& peers_;
  Communicator& kv_;
  const Membership& members_;
  bool has_messages_ = false;
  Parcels outgoing_;
  Parcels incoming_;
};

}  // namespace kvmesh
