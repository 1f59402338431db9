// The other kv ranks' pools, mapped into this rank.
#pragma once

#include <optional>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "runtime/memory/pool_storage.hpp"

namespace kvmesh {

/// Which ranks map whose pools, and the maps of this rank. A map keeps the pages readable when
/// their owner has died.
class PeerPools {
 public:
  /// Nobody maps anybody.
  explicit PeerPools(int ranks);
  /// Collective over `kv`; all ranks' storages have the same shape. What cannot be mapped is not.
  PeerPools(const PoolStorage& mine, Communicator& kv);

  /// The pages of one layer of `owner`; empty for what is not mapped, and for this rank itself.
  std::optional<KvPool> layer(Rank owner, int layer) const;
  /// The same on every rank.
  bool maps(Rank reader, Rank owner) const {
    return mapped_[index(reader) * pools_.size() + index(owner)] != 0;
  }

 private:
  static std::size_t index(Rank rank) { return static_cast<std::size_t>(rank.value); }

  std::optional<PoolLayout> layout_;
  std::vector<std::shared_ptr<void>> pools_;  // [owner], null: not mapped
  std::vector<std::uint8_t> mapped_;          // [reader][owner]
};

}  // namespace kvmesh
