// Tokens of pages that move in all planes of some layers at once: from pools to pools, or between
// pools and rows that follow one another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace kvmesh {

/// Tokens of one page, from and to. An end that is no pool ignores its page and token.
struct PageMove {
  std::int32_t source = 0;
  std::int32_t destination = 0;
  std::int32_t source_token = 0;
  std::int32_t destination_token = 0;
  std::int32_t tokens = 0;
};

/// One plane of one layer at both ends: its page 0 in a contiguous pool [pages, heads, page_size,
/// elements], or null for the end that is packed.
struct MovedPlane {
  std::byte* from = nullptr;
  std::byte* to = nullptr;
  std::int64_t row_bytes = 0;  ///< of a token and head
  std::int64_t before = 0;     ///< bytes of a token's rows in the planes before this one
};

/// The rows of a packed move: plane after plane, head after head, token after token.
struct PageMoves {
  std::span<const MovedPlane> planes;
  std::int64_t heads = 0;
  std::int64_t page_size = 0;
  std::int64_t token_bytes = 0;  ///< of all planes
  std::span<const PageMove> moves;
  /// [moves] where the rows of the packed end begin, in host memory; empty: both ends are pools.
  std::span<std::byte* const> packed{};
  bool packs = false;  ///< the packed end is the destination
  /// Owns the packed end's memory, if that must live until the moves are done although the host has
  /// stopped waiting for them; null: the caller keeps it alive.
  std::shared_ptr<const void> packed_owner{};
};

/// Moves pages in host memory.
void move_pages(const PageMoves& moves);

}  // namespace kvmesh
