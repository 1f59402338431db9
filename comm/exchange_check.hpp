// What every communicator checks before it sends anything.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Checks the entries of `exchange` calls: peers within the group, each at most once, and a copy to
/// oneself whose two sides agree. Keeps its scratch, so a check allocates nothing after the first.
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

/// Copies the caller's entry for itself, if there is one.
void copy_to_self(Rank self, std::span<const Outgoing> outgoing,
                  std::span<const Incoming> incoming);

/// Bytes of `outgoing` that leave the caller.
std::size_t bytes_to_others(Rank self, std::span<const Outgoing> outgoing);

}  // namespace kvmesh
