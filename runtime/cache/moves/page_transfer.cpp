// Copies of pages across ranks: of copy on write, and of pages that move. The rank that holds the
// copy reads the page from the source's pools if it maps them. Otherwise the page's tokens are sent
// over the kv communicator.
//
//   source                            holder of the copy
//   wait                              wait               no kernel uses these pages any more
//   "ready", or the tokens  ------->                     first exchange
//                                     copy               out of the map, or of what came
//                           <-------  "done"             second exchange, only for maps
//
// The source waits for "done", because its next append may write to the page that is being read.
// Both ranks wait for their streams or, without a stream, for their devices; a rank that gives and
// takes no page does not wait. A rank whose own copies fail still takes part in the exchanges, and
// throws at the end: the communicator of the other ranks stays whole.
#include "runtime/cache/moves/page_transfer.hpp"

#include <algorithm>
#include <memory>
#include <ranges>
#include <string>
#include <vector>

#include "runtime/cache/moves/parcels.hpp"
#include "runtime/memory/attempt.hpp"
#include "runtime/memory/page_mover.hpp"

namespace kvmesh {
namespace {

bool is_remote(const PageCopy& copy) { return copy.source.rank() != copy.destination.rank(); }

/// Gives each parcel memory for its tokens, or for one byte as a signal. A move that this rank has
/// stopped waiting for may use the memory after the transfer has ended.
void allocate(Parcels& parcels) {
  for (Parcel& parcel : std::views::values(parcels)) {
    const auto bytes =
        std::make_shared<std::vector<std::byte>>(parcel.mapped ? 1 : parcel.packed_bytes);
    parcel.bytes = *bytes;
    parcel.owner = bytes;
  }
}

class Transfer {
 public:
  Transfer(const PageMover& mover, const DeviceMoves& device, const PeerPools& peers,
           Communicator& kv, const Membership& members, std::string_view operation)
      : mover_(mover),
        device_(device),
        parcels_(mover, peers, kv, members),
        operation_(operation) {}

  void add(const PageCopy& copy) { parcels_.add(copy); }

  void run(Attempt& attempt) {
    Parcels& outgoing = parcels_.outgoing();
    Parcels& incoming = parcels_.incoming();
    allocate(outgoing);
    allocate(incoming);
    attempt([&] {
      for (Parcel& parcel : std::views::values(outgoing)) {
        if (!parcel.mapped) move(parcel, mover_.my_pools(), parcel.packed());
      }
    });
    parcels_.exchange(outgoing, incoming, operation_);
    attempt([&] {
      for (auto& [source, parcel] : incoming) {
        move(parcel, parcels_.source_of(source, parcel), mover_.my_pools());
      }
    });
    for (Parcels* parcels : {&outgoing, &incoming}) {
      std::erase_if(*parcels, [](const auto& entry) { return !entry.second.mapped; });
    }
    parcels_.exchange(incoming, outgoing, operation_ + " done");
  }

 private:
  void move(const Parcel& parcel, const MoveEnd& from, const MoveEnd& to) const {
    mover_.move(mover_.layers(), parcel.moves, from, to, device_);
  }

  const PageMover& mover_;
  const DeviceMoves& device_;
  PageParcels parcels_;
  std::string operation_;
};

}  // namespace

void transfer_pages(Backend& backend, const PoolStorage& pools, const PeerPools& peers,
                    Communicator& kv, const Membership& members, std::span<const PageCopy> copies,
                    std::size_t group, std::string_view operation, std::optional<Stream> stream,
                    Attempt attempt) {
  if (copies.empty()) return attempt.rethrow();
  const PageMover mover(pools, group);
  const DeviceMoves between_ranks = backend.device_moves();
  std::vector<PageMove> local;
  Transfer transfer(mover, between_ranks, peers, kv, members, operation);
  const PageRank me = members.page_rank(kv.rank());
  const int rows = pools.layout().groups()[group].format.page_size;  // of a state: one
  bool remote = false, takes_part = false;
  for (PageCopy copy : copies) {
    copy.tokens = std::min(copy.tokens, rows);
    if (is_remote(copy)) {
      remote = true;
      takes_part |= copy.source.rank() == me || copy.destination.rank() == me;
      transfer.add(copy);
    } else if (copy.source.rank() == me) {
      local.push_back({.source = copy.source.index(),
                       .destination = copy.destination.index(),
                       .tokens = copy.tokens});
    }
  }
  if (!stream) attempt([&] { backend.wait_idle(); });  // the pages to copy may still be written
  if (stream && takes_part) attempt([&] { backend.wait(*stream); });
  attempt([&] {
    mover.move(mover.layers(), local, mover.my_pools(), mover.my_pools(),
               backend.device_moves(stream));
  });
  if (remote) transfer.run(attempt);
  attempt.rethrow();
}

}  // namespace kvmesh
