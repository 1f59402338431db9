// The hashes of pages that were evicted not long ago.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace kvmesh {

/// Remembers about the last `count` evictions, in a table of 2 * `count` to 4 * `count` places of
/// which each keeps the newest hash: sometimes forgets one too early, never allocates.
class Ghosts {
 public:
  explicit Ghosts(std::uint64_t count) : count_(count), places_(std::bit_ceil(2 * count + 1)) {}

  void add(std::uint64_t hash) { at(hash) = {hash, ++evictions_}; }
  /// Returns whether the hash is remembered, and forgets it.
  bool take(std::uint64_t hash) {
    Place& place = at(hash);
    const bool found = place.time != 0 && place.hash == hash && evictions_ - place.time < count_;
    if (found) place = {};
    return found;
  }

 private:
  struct Place {
    std::uint64_t hash = 0;
    std::uint64_t time = 0;  // the number of the eviction; 0: empty
  };
  Place& at(std::uint64_t hash) { return places_[(hash >> 7) & (places_.size() - 1)]; }

  std::uint64_t count_;
  std::uint64_t evictions_ = 0;
  std::vector<Place> places_;
};

}  // namespace kvmesh
