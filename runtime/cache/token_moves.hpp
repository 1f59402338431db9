// Moves single tokens between pages, whichever ranks hold them.
#pragma once

#include <span>

#include "kvmesh/communicator.hpp"
#include "kvmesh/membership.hpp"
#include "runtime/step/backend.hpp"

namespace kvmesh {

struct TokenPlace {
  PageId page{};
  std::int32_t offset = 0;  ///< in the page
};
struct TokenMove {
  TokenPlace from{};
  TokenPlace to{};
};

/// Copies the tokens at `from` to `to`. The two may overlap: every token is read before any is
/// written. On a GPU it runs on `stream`, and blocks only where this rank sends or receives a
/// token. If a copy fails on this rank, the exchange is made nevertheless, and then the error is
/// thrown.
/// REQUIRES: all ranks pass the same moves; `members` are of `kv`.
/// Collective over `kv` if a token moves between ranks.
void move_tokens(Backend& backend, const TokenPlanes& planes, Communicator& kv,
                 const Membership& members, std::span<const TokenMove> moves, Stream stream);

}  // namespace kvmesh
