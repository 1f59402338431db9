#include "allocator/prefix/trial_cache.hpp"

namespace kvmesh {

void TrialCache::shrink(const OpenWaits& waits, std::uint64_t pages, const Credits& credits) {
  while (held_ > pages) {
    std::size_t least = OpenWaits::kKinds;
    const auto use = [&](std::size_t kind) {
      return static_cast<std::int64_t>(first_[kind]) + credits[kind];
    };
    for (std::size_t kind = 0; kind < OpenWaits::kKinds; ++kind) {
      if (first_[kind] == waits.current()) continue;
      if (least == OpenWaits::kKinds || use(kind) < use(least)) least = kind;
    }
    if (least == OpenWaits::kKinds) return;
    held_ -= waits[first_[least]++][least];
  }
}

void TrialCache::forget(std::uint64_t first, const OpenWaits::Counts& counts) {
  for (std::size_t kind = 0; kind < OpenWaits::kKinds; ++kind) {
    if (first_[kind] >= first) continue;
    held_ -= counts[kind];
    first_[kind] = first;
  }
}

}  // namespace kvmesh
