// The tiers of a cache.
#pragma once

#include <algorithm>
#include <chrono>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "runtime/cache/group_tiers.hpp"
#include "runtime/memory/attempt.hpp"

namespace kvmesh {

/// Follows the allocators' change logs: stores what they evict, and brings it back for matches.
///
/// The ranks agree on what the host tiers hold without a message, since that depends on the order
/// of operations alone. The content of a file tier depends on disks. In a match that files may
/// lengthen, the ranks therefore exchange, over the world, how many pages each of them finds, and
/// then how many it has read and checked; all ranks take the least. A file that is bad on one rank
/// is a miss on all. A rank that fails sends a special number in these exchanges, so that no other
/// rank waits for it.
///
/// Loads that match_now has started are in a list that is equal on all ranks. Each rank knows only
/// which of its own pages have come, until an exchange of a later match publishes those that have
/// come on all ranks. Until then a pin of the list holds the pages. When an operation needs the
/// pages, all ranks give the loads up at that operation, without a message.
class CacheTiers {
 public:
  /// Orders the work to come on the stream after moves that were given up; without a stream it
  /// blocks until they are done.
  using AfterLateMoves = std::function<void(std::optional<Stream>)>;
  /// The copies run after late moves. REQUIRES: the mesh, the groups and the pools outlive it; the
  /// objects that the function uses live until its destructor begins.
  /// @throws OutOfMemory on every rank if a rank has no room for its host tier. Collective.
  CacheTiers(Mesh& mesh, const CacheOptions& options, std::deque<CacheGroup>& groups,
             const PoolStorage& pools, AfterLateMoves after_late_moves,
             std::unique_ptr<FileCalls> calls = std::make_unique<FileCalls>());

  /// Stores the pages that were evicted since the last call. Call it after every operation that may
  /// take pages, before anything is written to them. On a GPU the copies run after the work on
  /// `after`, or, without it, after all work of the device, for which the call then waits.
  void pages_taken(std::optional<Stream> after = {});
  /// The work to come on `stream` runs after all copies from and to the pools. On the CPU it blocks
  /// until they are done. @throws as PageCopies::before. After that this call and those below throw
  /// the same every time: the content of a page whose copy has failed is unknown, though a match
  /// may find the page by its hash.
  void before(Stream stream);
  /// Blocks until all copies from and to the pools are done. @throws as PageCopies::wait_all.
  void wait();
  /// Returns jobs that are completed when the copies so far are done.
  std::vector<TierJob> copies_so_far();
  /// As match_prefix of the groups, tiers included; `after` as in pages_taken. Collective over the
  /// world if there is a file tier, and device and host do not have all full pages of the key, or
  /// have no room for them.
  /// @throws the failure of a wait or a copy of this rank; in an exchange, Error if another rank
  /// has one: then no rank has pinned anything. Without an exchange the index stays equal to that
  /// of the other ranks, and every later call throws, too.
  PrefixMatch match(const PrefixKey& key, std::optional<Stream> after);
  /// As KvCache::match_prefix_now. Collective and @throws as match.
  PrefixMatch match_now(const PrefixKey& key, std::optional<Stream> after);
  bool is_loading() const { return !loadings_.empty(); }
  /// Whether a page that is being loaded is the source of one of the copies, [group].
  bool loads_to(std::span<const std::vector<PageCopy>> copies) const;
  /// How many pages of a group `give_up_loads` makes usable: those that nothing but loads holds.
  std::int64_t pages_to_give_up(std::size_t group) const;
  /// Ends all loads that are under way, and gives their pages back. Call it on every rank, at the
  /// same operation. Waits for nothing.
  void give_up_loads();
  /// Stores all published pages, and those of the host tiers, in files. Blocks. @throws Timeout.
  void flush();
  TierStatistics statistics() const;

 private:
  /// The pages of a run that a group lacks.
  struct Part {
    std::vector<std::int64_t> pages{};  ///< logical numbers
    std::vector<PagePlace> places{};
    std::vector<PageHash> in_host{}, in_files{};
    bool lacks_room = false;  ///< on the rank of a page of a host tier
  };
  static bool has_files(std::span<const Part> parts) {
    return std::ranges::any_of(parts, [](const Part& part) { return !part.in_files.empty(); });
  }
  /// A page that comes back.
  struct Load {
    std::size_t group = 0;
    std::int64_t page = 0;  ///< logical number
    bool from_file = false;
    PageId to{};
    TierJob job{};
  };
  /// A run of which some pages are being loaded, equal on every rank but for the jobs.
  struct Loading {
    PrefixKey key;  ///< of the run
    std::int64_t pages = 0;
    std::vector<Part> parts{};
    PrefixMatch pin{};
    std::int64_t arrived = 0;   ///< leading pages that are published
    std::vector<Load> loads{};  ///< of the other pages
  };
  struct Arrival {
    std::int64_t pages = 0;  ///< leading pages that have come
    bool has_ended = true;   ///< no load is under way
  };
  /// The places of a key's pages, as far as they are known.
  using Places = std::vector<std::vector<std::optional<PagePlace>>>;  // [group][logical page]

  /// The pages that count for a run.
  struct Looks {
    InFiles in_files = InFiles::kNo;
    bool counts_coming = false;
  };
  /// The leading pages of a key that are there, and those that are there or coming.
  struct Run {
    std::int64_t pages = 0, coming = 0;
  };

  // tier_search.cpp
  std::int64_t first_seen(std::size_t group, const PrefixKey& key, std::int64_t pages) const;
  Places no_places(const PrefixKey& key) const;
  PagePlace place(Places& places, std::size_t group, const PrefixKey& key, std::int64_t page,
                  InFiles in_files);
  std::int64_t run_of(std::size_t group, Places& places, const PrefixKey& key, std::int64_t most,
                      Looks looks);
  std::int64_t longest(Places& places, const PrefixKey& key, std::int64_t most, Looks looks);
  void leave_out_full(Places& places, const PrefixKey& key, std::int64_t most);
  bool needs_files(const PrefixKey& key);
  Run agreed_run(Places& places, const PrefixKey& key, std::int64_t most, InFiles in_files);

  // cache_tiers.cpp
  PrefixMatch match(const PrefixKey& key, std::optional<Stream> after, InFiles in_files);
  std::optional<PrefixMatch> bring_back(const PrefixKey& key, std::int64_t pages, Places& places,
                                        std::int64_t& limit, std::optional<Stream> after);
  bool find_room(const PrefixKey& key, std::int64_t pages, Places& places, std::int64_t& limit,
                 std::vector<Part>& parts);
  std::int64_t missing(std::size_t group, const PrefixKey& key, std::int64_t pages, Places& places,
                       Part& part);
  std::int64_t fill(const PrefixKey& key, std::int64_t pages, std::span<const Part> parts,
                    SequenceId pin, std::optional<Stream> after, Attempt& attempt);
  PrefixMatch pin(const PrefixKey& key, std::int64_t pages, std::span<const Part> parts);
  void unpin_host(std::span<const Part> parts);
  void publish(const PrefixMatch& match, const PrefixKey& key);
  void release(const PrefixMatch& match);
  void start(const PrefixKey& key, std::span<const Part> parts, SequenceId pin,
             std::optional<Stream> after, Attempt& attempt, std::vector<Load>& loads);
  void submit_loads(const PrefixKey& key, std::span<const Part> parts, SequenceId pin,
                    std::vector<Load>& loads);
  std::int64_t wait_for(std::span<const Load> loads, const PrefixKey& key, std::int64_t pages);
  std::vector<std::int64_t> of_all_ranks(std::span<const std::int64_t> mine, const Attempt& attempt,
                                         std::string_view operation);
  std::vector<std::int64_t> least_of_all_ranks(std::span<const std::int64_t> mine,
                                               const Attempt& attempt, std::string_view operation);

  // file_loads.cpp
  std::int64_t start_loads(const PrefixKey& key, std::optional<Stream> after);
  void load_run(const PrefixKey& key, std::int64_t pages, std::int64_t here,
                std::vector<Part>&& parts, std::optional<Stream> after);
  void publish_loads(std::chrono::milliseconds most);
  static Arrival arrived(const Loading& loading);
  void end_loads(const Loading& loading);
  void publish_arrived(Loading& loading, std::int64_t pages);

  void distrust(std::size_t group, const PrefixKey& key, std::int64_t page);
  void distrust_run(std::size_t group, const PrefixKey& key, std::int64_t page, const Part& part);
  void copy_after(std::optional<Stream> stream);
  void check() const {
    if (failure_) std::rethrow_exception(failure_);
  }
  /// Runs a step that throws the failure of an earlier copy, and keeps that failure.
  template <class Step>
  void keep_failure(const Step& step) {
    check();
    try {
      step();
    } catch (const Timeout&) {  // the copies may still be made
      throw;
    } catch (...) {
      failure_ = std::current_exception();
      throw;
    }
  }

  Mesh& mesh_;
  std::deque<CacheGroup>& groups_;
  AfterLateMoves after_late_moves_;
  std::int64_t pages_back_ = 0;
  std::exception_ptr failure_;  // of a copy
  std::unique_ptr<FileCalls> calls_;
  std::vector<std::unique_ptr<GroupTiers>> tiers_;                // [group]
  std::vector<Loading> loadings_;                                 // in the order of their start
  std::vector<std::unordered_set<PageHash, FirstBytes>> coming_;  // [group] pages of loadings_
};

}  // namespace kvmesh
