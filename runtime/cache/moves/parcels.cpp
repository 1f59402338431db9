#include "runtime/cache/moves/parcels.hpp"

namespace kvmesh {

void PageParcels::add(const PageCopy& copy) {
  const Rank from = members_.holder(copy.source.rank());
  const Rank to = members_.holder(copy.destination.rank());
  const bool mapped = peers_.maps(to, from);
  has_messages_ |= !mapped;
  if (from == kv_.rank()) add(outgoing_[to], copy, mapped);
  if (to == kv_.rank()) add(incoming_[from], copy, mapped);
}

void PageParcels::add(Parcel& parcel, const PageCopy& copy, bool mapped) const {
  parcel.mapped = mapped;
  if (!mapped) parcel.packed_bytes += mover_.bytes(mover_.layers(), copy.tokens);
  parcel.moves.push_back({.source = copy.source.index(),
                          .destination = copy.destination.index(),
                          .tokens = copy.tokens});
}

MoveEnd PageParcels::source_of(Rank source, const Parcel& parcel) const {
  if (!parcel.mapped) return parcel.packed();
  return {.pools = [this, source](int layer) { return *peers_.layer(source, layer); }};
}

void PageParcels::exchange(const Parcels& give, Parcels& take, std::string_view operation) const {
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (const auto& [peer, parcel] : give)
    if (!parcel.bytes.empty()) sends.push_back({peer, parcel.bytes});
  for (auto& [peer, parcel] : take)
    if (!parcel.bytes.empty()) receives.push_back({peer, parcel.bytes});
  kv_.exchange(sends, receives, operation);
}

}  // namespace kvmesh
