#include "runtime/cache/moves/side_copies.hpp"

#include <bit>
#include <ranges>
#include <utility>

namespace kvmesh {
namespace {

// Parcels that are started at once: a GPU's stream takes this many without waiting for earlier ones
// (PageCopier).
constexpr int kAtOnce = 4;

}  // namespace

SideCopies::SideCopies(const PoolStorage& pools, const PeerPools& peers, Communicator& kv,
                       const Membership& members, Device device,
                       std::function<std::unique_ptr<MoveStream>()> make_stream)
    : pools_(pools),
      peers_(peers),
      kv_(kv),
      members_(members),
      device_(device),
      make_stream_(std::move(make_stream)) {}

void SideCopies::prepare(std::span<const std::vector<PageCopy>> copies,
                         std::optional<Stream> after) {
  groups_.clear();
  movers_.clear();
  waiting_.clear();
  failed_ = std::make_shared<std::atomic<bool>>(false);
  for (std::size_t g = 0; g < copies.size(); ++g) {
    PageParcels& parcels =
        groups_.emplace_back(movers_.emplace_back(pools_, g), peers_, kv_, members_);
    for (const PageCopy& copy : copies[g]) parcels.add(copy);
    for (const auto& [peer, parcel] : parcels.outgoing())
      if (!parcel.mapped) waiting_.push_back({.group = g, .peer = peer, .packs = true});
  }
  allocate(groups_, &PageParcels::outgoing, given_, device_);
  allocate(groups_, &PageParcels::incoming, taken_, device_);
  if (!stream_) stream_ = make_stream_();
  if (after) stream_->after(*after);
  stream_->call([](bool) {}, true);  // done when the work so far is
}

/// Gives the parcels that are not mapped room in `memory`.
void SideCopies::allocate(std::deque<PageParcels>& groups, Parcels& (PageParcels::*parcels)(),
                          HostMemory& memory, Device device) {
  std::size_t bytes = 0;
  for (PageParcels& group : groups)
    for (const Parcel& parcel : std::views::values((group.*parcels)()))
      bytes += parcel.packed_bytes;
  if (bytes > memory.size_bytes()) memory = HostMemory(device, std::bit_ceil(bytes));
  std::byte* next = memory.data();
  for (PageParcels& group : groups)
    for (Parcel& parcel : std::views::values((group.*parcels)()))
      if (!parcel.mapped)
        parcel.bytes = {std::exchange(next, next + parcel.packed_bytes), parcel.packed_bytes};
}

void SideCopies::exchange(std::string_view operation) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    PageParcels& parcels = groups_[g];
    if (parcels.has_messages()) parcels.exchange(parcels.outgoing(), parcels.incoming(), operation);
    for (const Rank source : std::views::keys(parcels.incoming()))
      waiting_.push_back({.group = g, .peer = source});
  }
}

bool SideCopies::advance() {
  if (!is_done()) return false;
  if (failed_ && *failed_) throw Error("pages could not be copied");
  if (waiting_.empty()) return true;
  for (int i = 0; i < kAtOnce && !waiting_.empty(); ++i) {
    start(waiting_.front());
    waiting_.pop_front();
  }
  const auto note = [failed = failed_](bool moved) {
    if (!moved) *failed = true;
  };
  stream_->call(note, false);
  return false;
}

void SideCopies::start(const Batch& batch) {
  PageParcels& parcels = groups_[batch.group];
  const PageMover& mover = movers_[batch.group];
  const auto move = [this](const PageMoves& moves) { stream_->move(moves); };
  if (batch.packs) {
    const Parcel& parcel = parcels.outgoing().at(batch.peer);
    mover.move(mover.layers(), parcel.moves, mover.my_pools(), parcel.packed(), move);
  } else {
    const Parcel& parcel = parcels.incoming().at(batch.peer);
    mover.move(mover.layers(), parcel.moves, parcels.source_of(batch.peer, parcel),
               mover.my_pools(), move);
  }
}

}  // namespace kvmesh
