// Copies of pages across ranks: of copy on write, and of pages that move. The rank that holds the
// copy reads the page from the source's pools if it maps them. Otherwise the page's tokens are sent
// over the kv communicator.
//
//   source                            holder of the copy
//   wait_idle                         wait_idle          no kernel uses these pages any more
//   "ready", or the tokens  ------->                     first exchange
//                                     copy               out of the map, or of what came
//                           <-------  "done"             second exchange, only for maps
//
// The source waits for "done", because its next append may write to the page that is being read. A
// rank whose own copies fail still takes part in the exchanges, and throws at the end: the others'
// communicator stays whole.
#include "runtime/cache/page_transfer.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <ranges>
#include <string>
#include <vector>

#include "runtime/memory/attempt.hpp"
#include "runtime/memory/page_mover.hpp"

namespace kvmesh {
namespace {

bool is_remote(const PageCopy& copy) { return copy.source.rank() != copy.destination.rank(); }

// The pages that go from one rank to another, in the order of the copies.
struct Parcel {
  using Bytes = std::vector<std::byte>;
  MoveEnd packed() const { return {.packed = bytes->data(), .packed_owner = bytes}; }

  bool mapped = false;  // the holder of the copies reads the source's pools
  // The tokens; for a mapped parcel one byte, as a signal. A move for which this rank has stopped
  // to wait reads or writes them after the transfer has ended.
  std::shared_ptr<Bytes> bytes = std::make_shared<Bytes>();
  std::vector<PageMove> moves;
};
using Parcels = std::map<Rank, Parcel>;  // by the other rank

class Transfer {
 public:
  Transfer(const PageMover& mover, const DeviceMoves& device, const PeerPools& peers,
           Communicator& kv, const Membership& members, std::string_view operation)
      : mover_(mover),
        device_(device),
        peers_(peers),
        kv_(kv),
        members_(members),
        operation_(operation) {}

  void add(const PageCopy& copy) {
    const Rank from = members_.holder(copy.source.rank());
    const Rank to = members_.holder(copy.destination.rank());
    const bool mapped = peers_.maps(to, from);
    if (from == kv_.rank()) add(outgoing_[to], copy, mapped);
    if (to == kv_.rank()) add(incoming_[from], copy, mapped);
  }

  void run(Attempt& attempt) {
    attempt([&] {
      for (Parcel& parcel : std::views::values(outgoing_)) {
        if (!parcel.mapped) move(parcel, mover_.my_pools(), parcel.packed());
      }
    });
    exchange(outgoing_, incoming_, operation_);
    attempt([&] {
      for (auto& [source, parcel] : incoming_) {
        move(parcel, parcel.mapped ? theirs(source) : parcel.packed(), mover_.my_pools());
      }
    });
    for (Parcels* parcels : {&outgoing_, &incoming_}) {
      std::erase_if(*parcels, [](const auto& entry) { return !entry.second.mapped; });
    }
    exchange(incoming_, outgoing_, operation_ + " done");
  }

 private:
  void add(Parcel& parcel, const PageCopy& copy, bool mapped) {
    parcel.mapped = mapped;
    const std::size_t more = mover_.bytes(mover_.layers(), copy.tokens);
    parcel.bytes->resize(parcel.mapped ? 1 : parcel.bytes->size() + more);
    parcel.moves.push_back({.source = copy.source.index(),
                            .destination = copy.destination.index(),
                            .tokens = copy.tokens});
  }

  void move(const Parcel& parcel, const MoveEnd& from, const MoveEnd& to) const {
    mover_.move(mover_.layers(), parcel.moves, from, to, device_);
  }
  MoveEnd theirs(Rank source) const {
    return {.pools = [this, source](int layer) { return *peers_.layer(source, layer); }};
  }

  void exchange(const Parcels& give, Parcels& take, std::string_view operation) const {
    std::vector<Outgoing> sends;
    std::vector<Incoming> receives;
    for (const auto& [peer, parcel] : give) sends.push_back({peer, *parcel.bytes});
    for (auto& [peer, parcel] : take) receives.push_back({peer, *parcel.bytes});
    kv_.exchange(sends, receives, operation);
  }

  const PageMover& mover_;
  const DeviceMoves& device_;
  const PeerPools& peers_;
  Communicator& kv_;
  const Membership& members_;
  std::string operation_;
  Parcels outgoing_;
  Parcels incoming_;
};

}  // namespace

void copy_on_write(Backend& backend, const PoolStorage& pools, const PeerPools& peers,
                   Communicator& kv, const Membership& members, std::span<const PageCopy> copies,
                   std::size_t group, std::string_view operation, std::optional<Stream> stream,
                   Attempt attempt) {
  if (copies.empty()) return attempt.rethrow();
  const bool remote = std::ranges::any_of(copies, is_remote);
  if (remote) stream.reset();                          // ranks wait for one another on the host
  if (!stream) attempt([&] { backend.wait_idle(); });  // the pages to copy may still be written
  const PageMover mover(pools, group);
  const DeviceMoves device = backend.device_moves(stream);
  std::vector<PageMove> local;
  Transfer transfer(mover, device, peers, kv, members, operation);
  const PageRank me = members.page_rank(kv.rank());
  const int rows = pools.layout().groups()[group].format.page_size;  // of a state: one
  for (PageCopy copy : copies) {
    copy.tokens = std::min(copy.tokens, rows);
    if (is_remote(copy)) {
      transfer.add(copy);
    } else if (copy.source.rank() == me) {
      local.push_back({.source = copy.source.index(),
                       .destination = copy.destination.index(),
                       .tokens = copy.tokens});
    }
  }
  attempt([&] { mover.move(mover.layers(), local, mover.my_pools(), mover.my_pools(), device); });
  if (remote) transfer.run(attempt);
  attempt.rethrow();
}

}  // namespace kvmesh
