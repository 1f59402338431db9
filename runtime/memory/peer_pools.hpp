// The other kv ranks' pools, mapped into this rank.
#pragma once

#include <optional>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// Records which ranks map which pools, and holds this rank's mappings. A mapping keeps the pages
/// readable after their owner has died.
class PeerPools {
 public:
  /// Without mappings.
  explicit PeerPools(int ranks);
  /// Maps the pools of all other ranks that this rank can reach; the other pools stay unmapped.
  /// `layouts` [ranks] are those of the ranks' storages; empty: all as mine.
  /// Collective over `kv`.
  PeerPools(const PoolStorage& mine, Communicator& kv, std::vector<PoolLayout> layouts = {});

  /// Maps the pools of `owner` anew, whose memory has changed. Views of them end.
  /// Collective over `kv`.
  void map_again(const PoolStorage& mine, Communicator& kv, Rank owner);

  /// Returns one layer's planes of `owner`; empty if they are not mapped, and for this rank itself.
  std::optional<PagePlanes> layer(Rank owner, int layer) const;
  /// True if `reader` maps the pools of `owner`. Returns the same on every rank.
  bool maps(Rank reader, Rank owner) const {
    return mapped_[index(reader) * pools_.size() + index(owner)] != 0;
  }

 private:
  void map(const PoolStorage& mine, Communicator& kv, std::optional<Rank> only);
  static std::size_t index(Rank rank) { return static_cast<std::size_t>(rank.value); }

  std::vector<PoolLayout> layouts_;           // [owner], or one of all
  std::vector<std::shared_ptr<void>> pools_;  // [owner], null: not mapped
  std::vector<std::uint8_t> mapped_;          // [reader][owner]
};

}  // namespace kvmesh
