// What a rank's KvCache is made of.
#pragma once

#include <set>
#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/cache_agreement.hpp"
#include "runtime/memory/peer_pools.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/step/local_pages.hpp"

namespace kvmesh {

/// What points into a cache's state, and is told before that goes.
class CacheUser {
 public:
  virtual void cache_ends() noexcept = 0;

 protected:
  ~CacheUser() = default;
};

class KvCache::State {
 public:
  State(Mesh mesh, const CacheAgreement& agreed);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  Mesh mesh;  // shared with the caller's, which may move or end
  CacheOptions options;
  LocalShape shape;
  PageAllocator allocator;
  PoolStorage pools;
  PeerPools peers;
  std::unique_ptr<Backend> backend;
  LocalPages local_pages;
  std::vector<AppendRequest> requests;  // of the last batch
  std::set<CacheUser*> users;           // the plans

  /// Before calls of the device that wait for all that it was given, and would for ever if a peer
  /// died in the middle of it: waits until the deadline. @throws Timeout, NcclError.
  void wait_for_peers();
  /// The same before memory is freed.
  void let_go() noexcept;

  /// Lengthens the batch's sequences and does the copies that this takes. False, with nothing
  /// changed, if the pools are too full.
  bool try_append(std::span<const BatchEntry> batch);
  /// After a try_append that was refused.
  [[noreturn]] void throw_out_of_pages();
};

/// Does the copies that copy on write asks for, in every layer: here with copy_pages; where a page
/// moves to another rank, that rank reads it through its map of the source's pools, or is sent it
/// over the kv communicator (then collective, as all ranks pass the same copies).
void copy_on_write(Backend& backend, const PoolStorage& pools, const PeerPools& peers,
                   Communicator& kv, std::span<const PageCopy> copies);

/// Collective. Throws DigestMismatch, naming the first operation in which the allocators parted.
void check_replicas(const PageAllocator& allocator, Communicator& world);

}  // namespace kvmesh
