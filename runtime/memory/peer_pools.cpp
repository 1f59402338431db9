#include "runtime/memory/peer_pools.hpp"

#include <algorithm>
#include <utility>

namespace kvmesh {

PeerPools::PeerPools(int ranks)
    : pools_(static_cast<std::size_t>(ranks)), mapped_(pools_.size() * pools_.size()) {}

PeerPools::PeerPools(const PoolStorage& mine, Communicator& kv, std::vector<PoolLayout> layouts)
    : PeerPools(kv.size()) {
  layouts_ = std::move(layouts);
  if (layouts_.empty()) layouts_.push_back(mine.layout());
  map(mine, kv, {});
}

void PeerPools::map_again(const PoolStorage& mine, Communicator& kv, Rank owner) {
  if (index(owner) != index(kv.rank())) pools_[index(owner)].reset();
  map(mine, kv, owner);
}

/// Maps the pools of all other ranks, or of one.
void PeerPools::map(const PoolStorage& mine, Communicator& kv, std::optional<Rank> only) {
  MemoryHandle handle = mine.handle();
  const std::unique_ptr<DescriptorServer> serving = mine.serve();
  if (serving) handle.pieces = serving->place();
  const std::vector<MemoryHandle> handles = all_gather_value(kv, handle, "exchange pools");
  std::vector<std::uint8_t> row(pools_.size());
  for (std::size_t owner = 0; owner < handles.size(); ++owner) {
    if (owner == index(kv.rank())) continue;
    if (!only || owner == index(*only)) pools_[owner] = map_memory(handles[owner], handle.device);
    row[owner] = pools_[owner] != nullptr;
  }
  // Publishes which rank maps which pools. It also keeps every owner here until its handles have
  // been used.
  mapped_ = all_gather_values<std::uint8_t>(kv, row, "map pools");
}

std::optional<PagePlanes> PeerPools::layer(Rank owner, int layer) const {
  void* const block = pools_[index(owner)].get();
  if (block == nullptr) return std::nullopt;
  return layouts_[layouts_.size() == 1 ? 0 : index(owner)].layer(block, layer);
}

}  // namespace kvmesh
