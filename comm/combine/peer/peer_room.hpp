// The size of a group's windows.
#pragma once

#include <cstddef>

namespace kvmesh {

/// How much rows of each form a window takes: the size of one slot. The same on all ranks.
struct PeerRoom {
  std::size_t word_slot_bytes = 0;
  std::size_t line_slot_bytes = 0;
  friend bool operator==(const PeerRoom&, const PeerRoom&) = default;
};

}  // namespace kvmesh
