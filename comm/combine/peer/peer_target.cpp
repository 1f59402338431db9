#include "comm/combine/peer/peer_target.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

RowShares shares_of(const CombineShape& shape, Scatter scatter, int ranks) {
  if (scatter == Scatter::kAll) return {};
  if (scatter == Scatter::kOwner) return {.axis = RowShares::Axis::kOwners};
  const bool by_token = scatter == Scatter::kTokens;
  const auto count = static_cast<int>(by_token ? shape.tokens : shape.heads);
  const int least = count / ranks;
  return {.axis = by_token ? RowShares::Axis::kTokens : RowShares::Axis::kHeads,
          .least = least,
          .extra = count % ranks,
          .by_more = Divisor(least + 1),
          .by_least = Divisor(least)};
}

}  // namespace

CombineTarget peer_target(const PeerWindow& window, const CombineShape& shape, Scatter scatter,
                          Dtype travels_as, const PeerLayout& layout) {
  const PeerWindowView view = window.view();
  CombineTarget target{.windows = {},
                       .slots_offset = window.slots_offset(layout.form),
                       .slot_bytes = window.slot_bytes(layout.form),
                       .participants = nullptr,
                       .owners = nullptr,
                       .last_epoch = view.epochs,
                       .rank = window.rank().value,
                       .ranks = window.ranks(),
                       .tokens = static_cast<int>(shape.tokens),
                       .heads = static_cast<int>(shape.heads),
                       .dim = static_cast<int>(shape.dim),
                       .block_rows = layout.block_rows,
                       .row_cells = layout.row_cells,
                       .form = layout.form,
                       .travels_as = travels_as,
                       .shares = shares_of(shape, scatter, window.ranks()),
                       .by_heads = Divisor(static_cast<int>(shape.heads))};
  std::copy(std::begin(view.windows), std::end(view.windows), target.windows);
  return target;
}

Divisor by_cells_of(const PeerLayout& layout) {
  return Divisor(layout.row_cells / (layout.form == RowForm::kWords ? 1 : kCellsPerLine));
}

}  // namespace kvmesh
