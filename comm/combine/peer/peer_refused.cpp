#include <fmt/format.h>

#include "comm/combine/peer/peer_window.hpp"

namespace kvmesh {

std::string PeerRefused::message(const Communicator& comm) const {
  const int first = comm.name_of(rank).value, second = comm.name_of(peer).value;
  switch (reason) {
    case PeerRefusal::kNone:
      return {};
    case PeerRefusal::kTooManyRanks:
      return fmt::format("the group has more than {} ranks", kMostPeerRanks);
    case PeerRefusal::kOtherHost:
      return fmt::format("rank {} is on another host than rank {}", first, second);
    case PeerRefusal::kNoMemory:
      return fmt::format("rank {} could not allocate a window or load its kernels", first);
    case PeerRefusal::kNotMapped:
      return fmt::format("rank {} cannot map the memory of rank {}", first, second);
    case PeerRefusal::kSlowLink:
      return fmt::format("rank {} sees no NVLink to the GPU of rank {}", first, second);
  }
  return "unknown";
}

}  // namespace kvmesh
