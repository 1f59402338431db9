// How the rows of a combine lie in a window.
#pragma once

#include <optional>

#include "comm/combine/peer/peer_room.hpp"
#include "comm/combine/rows.hpp"
#include "core/pod/combine_target.hpp"

namespace kvmesh {

struct PeerLayout {
  RowForm form = RowForm::kWords;
  int row_cells = 0;   ///< cells of a row: 16 bytes each
  int block_rows = 0;  ///< rows of the largest share: a source's room in a slot
  std::int64_t slot_bytes(int ranks) const {
    return std::int64_t{ranks} * block_rows * row_cells * kCellBytes;
  }
  friend bool operator==(const PeerLayout&, const PeerLayout&) = default;
};

/// The layout with the rows in one form, whatever its size. REQUIRES: the rows are fewer than 2^31.
PeerLayout peer_layout(const CombineShape& shape, const CombineOptions& options, int ranks,
                       RowForm form);

/// The faster of the layouts that fit into `room`; empty if none does.
std::optional<PeerLayout> fitting_layout(const CombineShape& shape, const CombineOptions& options,
                                         int ranks, const PeerRoom& room);

}  // namespace kvmesh
