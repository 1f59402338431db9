// The order of eviction that a text names.
#pragma once

#include <string>
#include <string_view>

#include "kvmesh/error.hpp"
#include "kvmesh/prefix.hpp"

namespace kvmesh::replay {

/// @throws InvalidArgument for another name.
inline Eviction policy_from(std::string_view text) {
  for (const Eviction policy : kAllEvictions)
    if (name(policy) == text) return policy;
  throw InvalidArgument("eviction '" + std::string(text) +
                        "' is none of hits, 2q, lru, s3fifo, segmented");
}

}  // namespace kvmesh::replay
