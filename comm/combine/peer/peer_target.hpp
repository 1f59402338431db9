// The view of a group's windows that a kernel gets.
#pragma once

#include "comm/combine/peer/peer_layout.hpp"
#include "comm/combine/peer/peer_window.hpp"

namespace kvmesh {

/// The places of rows that `scatter` gives to their owners; without a mask, and without the owners
/// of Scatter::kOwner.
CombineTarget peer_target(const PeerWindow& window, const CombineShape& shape, Scatter scatter,
                          Dtype travels_as, const PeerLayout& layout);

/// Divides the numbers of a kernel's cells (of lines: of its lines) by those of a row.
Divisor by_cells_of(const PeerLayout& layout);

}  // namespace kvmesh
