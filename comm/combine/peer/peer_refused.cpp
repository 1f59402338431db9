#include <fmt/format.h>

#include "comm/combine/peer/peer_window.hpp"

namespace kvmesh {

std::string PeerRefused::message() const {
  switch (reason) {
    case PeerRefusal::kNone:
      return {};
    case PeerRefusal::kTooManyRanks:
      return fmt::format("the group has more than {} ranks", kMostPeerRanks);
    case PeerRefusal::kOtherHost:
      return fmt::format("rank {} is on another host than rank {}", rank.value, peer.value);
    case PeerRefusal::kNoMemory:
      return fmt::format("rank {} could not allocate a window or load its kernels", rank.value);
    case PeerRefusal::kNotMapped:
      return fmt::format("rank {} cannot map the memory of rank {}", rank.value, peer.value);
    case PeerRefusal::kSlowLink:
      return fmt::format("rank {} sees no NVLink to the GPU of rank {}", rank.value, peer.value);
  }
  return "unknown";
}

}  // namespace kvmesh
