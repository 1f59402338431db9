// The tiers of a cache.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "runtime/memory/pool_storage.hpp"
#include "runtime/step/backend.hpp"
#include "runtime/tiers/file_tier.hpp"
#include "runtime/tiers/host_tier.hpp"

namespace kvmesh {

/// Follows the allocator's change log: stores what it evicts, and brings it back for matches.
///
/// The ranks agree on what the host tiers hold without a message, since that depends on the order
/// of operations alone. What a file tier holds depends on disks. So a match that could go on from
/// files exchanges, over the world, how many pages each rank finds, and then how many it has read
/// and checked; all ranks take the least. A file that is bad on one rank is a miss on all.
class CacheTiers {
 public:
  /// REQUIRES: all but the options outlive it.
  /// @throws OutOfMemory on every rank if a rank has no room for its host tier. Collective.
  CacheTiers(Mesh& mesh, const CacheOptions& options, PageAllocator& allocator, Backend& backend,
             const PoolStorage& pools);

  /// Stores the pages that were evicted since the last call. Call it after every operation that may
  /// take pages, before anything is written to them. On a GPU the copies run after the work on
  /// `after`, or, without it, after all work of the device, for which the call then waits.
  void pages_taken(std::optional<Stream> after = {});
  /// The work to come on `stream` runs after all copies from and to the pools. On the CPU it blocks
  /// until they are done. @throws as PageCopies::before.
  void before(Stream stream) { copies_.before(stream); }
  /// Blocks until all copies from and to the pools are done. @throws as PageCopies::wait_all.
  void wait() { copies_.wait_all(); }
  /// As PageAllocator::match_prefix, tiers included; `after` as in pages_taken. Collective over the
  /// world if there is a file tier and device and host do not have all full pages of the key.
  PrefixMatch match(const PrefixKey& key, std::optional<Stream> after);
  /// Stores all published pages, and those of the host tier, in files. Blocks.
  void flush();
  TierStatistics statistics() const;

 private:
  std::vector<PageRank> homes_of(std::span<const PageHash> pages);
  bool file_has(const PageHash& hash);
  void fit(std::vector<PageRank>& homes) const;
  PrefixMatch bring_back(const PrefixMatch& match, const PrefixKey& key,
                         std::span<const PageRank> homes, std::optional<Stream> after);
  void copy_after(std::optional<Stream> stream);
  std::size_t load(std::span<const PageHash> pages, std::span<const PageRank> homes,
                   std::span<const PageId> to);
  std::size_t least(std::size_t count, std::string_view operation);
  Tier& first() { return host_ ? static_cast<Tier&>(*host_) : *file_; }
  void store_in_file(const PageHash& hash, const PageSource& from);

  Mesh& mesh_;
  TierOptions options_;
  PageAllocator& allocator_;
  Backend& backend_;
  ChangeCursor cursor_;
  std::int64_t pages_back_ = 0;
  FileCalls calls_;
  std::unique_ptr<FileTier> file_;  // null: none
  std::unique_ptr<HostTier> host_;  // null: none
  PageCopies copies_;               // ends first: its last jobs may hand pages to the file tier
};

}  // namespace kvmesh
