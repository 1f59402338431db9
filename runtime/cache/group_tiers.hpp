// The tiers of one layer group.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "runtime/cache/cache_group.hpp"
#include "runtime/tiers/file_tier.hpp"
#include "runtime/tiers/host_tier.hpp"
#include "runtime/tiers/page_copies.hpp"

namespace kvmesh {

/// The first place where a page of a key is found.
struct PagePlace {
  enum Where : std::uint8_t {
    kNowhere,
    kComing,  ///< a load to the device, or a store in a file, is under way
    kDevice,
    kHost,
    kFile,
  };
  Where where = kNowhere;
  PageRank rank{-1};  ///< of a page of the host tiers
};

/// How a page is looked for in files.
enum class InFiles : std::uint8_t {
  kNo,
  /// Without a wait: a page that is being stored is coming; one that is distrusted is nowhere,
  /// since a caller that asks again and again must not read its file each time.
  kNow,
  kWait,  ///< Waits for a store of the page, at most until the deadline: then it is nowhere.
};

/// The host and file tier of one layer group, and its place in the allocator's list of evictions.
class GroupTiers {
 public:
  /// REQUIRES: all but the options and names outlive it.
  /// @throws std::bad_alloc, Error if there is no room for the host tier.
  GroupTiers(Mesh& mesh, const CacheOptions& cache, CacheGroup& group, const PoolStorage& pools,
             std::size_t number, FileCalls& calls);
  /// Cancels loads that are under way.
  ~GroupTiers();
  GroupTiers(const GroupTiers&) = delete;
  GroupTiers& operator=(const GroupTiers&) = delete;

  /// Reads which pages were evicted since the last call. Returns whether store_evicted has
  /// something to do.
  bool read_evictions();
  /// Stores those pages. REQUIRES: no writer of them is still running, or copies() runs after it.
  void store_evicted();

  /// Finds a page on the device or in the host tiers: equal on all ranks.
  PagePlace find(const PageHash& hash) const;
  /// Finds a page in this rank's files.
  PagePlace find_file(const PageHash& hash, InFiles how);
  TierJob load(const PageHash& hash, const PagePlace& from, PageId to);
  /// Counts pages that came from files as hits there. Call it on every rank.
  void loaded(std::span<const PageHash> pages);
  PageCopies& copies() { return copies_; }
  HostTier* host() { return host_.get(); }
  FileTier* file() { return file_.get(); }

  PageAllocator& allocator() { return group_.allocator; }
  std::int64_t window() const { return group_.options.window; }

  /// Submits stores of all published pages of this rank, and of its host tier, to the file tier.
  void store_all();
  void add_to(TierStatistics& sum) const;

 private:
  void trust_others();
  void store_in_file(const PageHash& hash, const PageSource& from);

  Mesh& mesh_;
  CacheGroup& group_;
  int stores_per_operation_;
  EvictionCursor cursor_;
  std::vector<PageId> evicted_;
  std::int64_t drops_ = 0;          // of this rank's pages, by stores_per_operation
  std::unique_ptr<FileTier> file_;  // null: none
  std::unique_ptr<HostTier> host_;  // null: none
  PageCopies copies_;               // ends first, and its last jobs may hand pages to the file tier
};

}  // namespace kvmesh
