// The names of the orders of eviction.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "kvmesh/error.hpp"
#include "kvmesh/prefix.hpp"

namespace kvmesh::replay {

inline constexpr std::array kPolicies{
    std::pair<std::string_view, Eviction>{"hits", Eviction::kHits},
    std::pair<std::string_view, Eviction>{"2q", Eviction::kTwoQueues},
    std::pair<std::string_view, Eviction>{"lru", Eviction::kLru},
    std::pair<std::string_view, Eviction>{"s3fifo", Eviction::kS3Fifo},
    std::pair<std::string_view, Eviction>{"segmented", Eviction::kSegmented}};

/// @throws InvalidArgument for another name.
inline Eviction policy_from(std::string_view text) {
  for (const auto& [name, policy] : kPolicies)
    if (name == text) return policy;
  throw InvalidArgument("eviction '" + std::string(text) +
                        "' is none of hits, 2q, lru, s3fifo, segmented");
}

}  // namespace kvmesh::replay
