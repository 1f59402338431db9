// All-gather of one value per rank.
#pragma once

#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Returns every rank's `mine`, in rank order. Collective.
template <class T>
std::vector<T> gathered(Communicator& comm, const T& mine, std::string_view operation) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> all(static_cast<std::size_t>(comm.size()));
  all_gather(comm, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)),
             operation);
  return all;
}

}  // namespace kvmesh
