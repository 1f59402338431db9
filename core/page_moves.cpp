#include "core/page_moves.hpp"

#include "core/bulk_copy.hpp"

namespace kvmesh {
namespace {

/// The place of a move's rows at one end, and the distance from one head's rows to the next one's.
struct End {
  std::byte* data;
  std::int64_t pitch;
};

End end_of(const PageMoves& all, std::size_t i, const MovedPlane& plane, bool is_source) {
  const PageMove& move = all.moves[i];
  std::byte* const pool = is_source ? plane.from : plane.to;
  if (pool == nullptr)
    return {all.packed[i] + move.tokens * plane.before, move.tokens * plane.row_bytes};
  const std::int64_t page = is_source ? move.source : move.destination;
  const std::int64_t token = is_source ? move.source_token : move.destination_token;
  return {pool + (page * all.heads * all.page_size + token) * plane.row_bytes,
          all.page_size * plane.row_bytes};
}

}  // namespace

void move_pages(const PageMoves& all) {
  std::int64_t tokens = 0;
  for (const PageMove& move : all.moves) tokens += move.tokens;
  const BulkCopy copy(static_cast<std::size_t>(tokens * all.token_bytes));
  for (std::size_t i = 0; i < all.moves.size(); ++i) {
    for (const MovedPlane& plane : all.planes) {
      const End from = end_of(all, i, plane, true), to = end_of(all, i, plane, false);
      const std::int64_t width = all.moves[i].tokens * plane.row_bytes;
      const bool is_one_row = from.pitch == width && to.pitch == width;
      const std::int64_t rows = is_one_row ? 1 : all.heads;
      const auto bytes = static_cast<std::size_t>(is_one_row ? width * all.heads : width);
      for (std::int64_t row = 0; row < rows; ++row)
        copy(to.data + row * to.pitch, from.data + row * from.pitch, bytes);
    }
  }
}

}  // namespace kvmesh
