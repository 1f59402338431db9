#include "comm/combine/peer/peer_layout.hpp"

#include <algorithm>
#include <limits>

namespace kvmesh {
namespace {

// From this many bytes for one owner on, rows go as lines: words would be twice the data.
constexpr std::int64_t kLinesFrom = 512 << 10;

std::int64_t divided_up(std::int64_t count, std::int64_t by) { return (count + by - 1) / by; }

std::int64_t cells_of_row(std::int64_t dim, Dtype wire, RowForm form) {
  const std::int64_t units =
      divided_up(dim * static_cast<std::int64_t>(size_bytes(wire)), kUnitBytes);
  const std::int64_t words = std::max<std::int64_t>(units, 1);  // the LSE travels in any case
  return form == RowForm::kWords ? words : divided_up(words, kUnitsPerLine) * kCellsPerLine;
}

bool fits(const CombineShape& shape, const CombineOptions& options, int ranks, RowForm form,
          std::size_t slot_bytes) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const std::int64_t cells = cells_of_row(shape.dim, options.travels_as, form);
  const std::int64_t rows = block_of(shape, options.scatter, 0, ranks).rows();
  // Cells are counted in 31 bits, those of all sources and those of all owners.
  if (cells > kMost || rows > kMost / cells / ranks || shape.rows() > kMost / cells) return false;
  return ranks * rows * cells * kCellBytes <= static_cast<std::int64_t>(slot_bytes);
}

}  // namespace

PeerLayout peer_layout(const CombineShape& shape, const CombineOptions& options, int ranks,
                       RowForm form) {
  return {.form = form,
          .row_cells = static_cast<int>(cells_of_row(shape.dim, options.travels_as, form)),
          .block_rows = static_cast<int>(block_of(shape, options.scatter, 0, ranks).rows())};
}

std::optional<PeerLayout> fitting_layout(const CombineShape& shape, const CombineOptions& options,
                                         int ranks, const PeerRoom& room) {
  const bool as_words = fits(shape, options, ranks, RowForm::kWords, room.word_slot_bytes);
  const bool as_lines = fits(shape, options, ranks, RowForm::kLines, room.line_slot_bytes);
  if (!as_words && !as_lines) return std::nullopt;
  if (!as_lines) return peer_layout(shape, options, ranks, RowForm::kWords);
  const PeerLayout words =
      as_words ? peer_layout(shape, options, ranks, RowForm::kWords) : PeerLayout{};
  const bool are_few =
      as_words && std::int64_t{words.block_rows} * words.row_cells * kCellBytes < kLinesFrom;
  return are_few ? words : peer_layout(shape, options, ranks, RowForm::kLines);
}

}  // namespace kvmesh
