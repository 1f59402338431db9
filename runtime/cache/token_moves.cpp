#include "runtime/cache/token_moves.hpp"

#include <map>
#include <vector>

#include "runtime/memory/attempt.hpp"

namespace kvmesh {
namespace {

// Tokens that go to one rank or come from it, in the order of the moves.
struct Parcel {
  std::vector<TokenSlot> slots;
  std::vector<std::byte> bytes;
};
using Parcels = std::map<Rank, Parcel>;  // by the other rank

TokenSlot slot_of(const TokenPlace& place) { return {place.page.index(), place.offset}; }

// This rank's part of some moves.
struct OwnMoves {
  std::vector<TokenSlot> from, to;  // within the rank
  Parcels outgoing, incoming;
};

OwnMoves own_moves(std::span<const TokenMove> moves, const Membership& members, Rank me) {
  OwnMoves own;
  for (const TokenMove& move : moves) {
    const Rank source = members.holder(move.from.page.rank());
    const Rank target = members.holder(move.to.page.rank());
    if (source == me && target == me) {
      own.from.push_back(slot_of(move.from));
      own.to.push_back(slot_of(move.to));
    } else if (source == me) {
      own.outgoing[target].slots.push_back(slot_of(move.from));
    } else if (target == me) {
      own.incoming[source].slots.push_back(slot_of(move.to));
    }
  }
  return own;
}

}  // namespace

// Tokens to send are packed before anything is written here. Tokens that move within this rank are
// read before received ones are written. A rank whose own copies fail still takes part in the
// exchange, and throws at the end.
void move_tokens(Backend& backend, const TokenPlanes& planes, Communicator& kv,
                 const Membership& members, std::span<const TokenMove> moves, Stream stream) {
  OwnMoves own = own_moves(moves, members, kv.rank());
  Attempt attempt;
  std::vector<Outgoing> sends;
  std::vector<Incoming> receives;
  for (auto& [peer, parcel] : own.outgoing) {
    parcel.bytes.resize(parcel.slots.size() * planes.token_bytes());
    attempt([&, &parcel = parcel] {
      backend.pack_tokens(planes, parcel.slots, parcel.bytes.data(), stream);
    });
    sends.push_back({peer, parcel.bytes});
  }
  attempt([&] {
    if (!own.from.empty()) backend.move_tokens(planes, own.from, own.to, stream);
  });
  for (auto& [peer, parcel] : own.incoming) {
    parcel.bytes.resize(parcel.slots.size() * planes.token_bytes());
    receives.push_back({peer, parcel.bytes});
  }
  if (!sends.empty() || !receives.empty()) kv.exchange(sends, receives, "move tokens");
  for (auto& [peer, parcel] : own.incoming) {
    attempt([&, &parcel = parcel] {
      backend.unpack_tokens(planes, parcel.slots, parcel.bytes.data(), stream);
    });
  }
  attempt.rethrow();
}

}  // namespace kvmesh
