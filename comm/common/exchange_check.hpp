// The checks of every communicator before it sends anything.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Checks the entries of `exchange` calls: every peer is in the group and appears at most once, and
/// the caller's two entries for itself have the same size. Keeps its buffers, so only the first
/// check allocates.
class ExchangeCheck {
 public:
  ExchangeCheck(Rank rank, int size);

  /// @throws InvalidArgument.
  void operator()(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                  std::string_view operation);

 private:
  void visit(Rank peer, std::string_view side, std::string_view operation);

  Rank rank_;
  std::vector<char> seen_;
};

/// Copies the caller's outgoing entry for itself, if any, to its incoming one.
void copy_to_self(Rank self, std::span<const Outgoing> outgoing,
                  std::span<const Incoming> incoming);

/// Returns the number of bytes in `outgoing` for other ranks.
std::size_t bytes_to_others(Rank self, std::span<const Outgoing> outgoing);

}  // namespace kvmesh
