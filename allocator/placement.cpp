#include "allocator/placement.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/check.hpp"

namespace kvmesh {
namespace {

std::int32_t next_rank(std::int32_t rank, int ranks) { return rank + 1 == ranks ? 0 : rank + 1; }

class PackedPlacement final : public PlacementPolicy {
 public:
  void take(SequencePlacement&, std::int64_t, std::span<PageId> out, PagePools& pools) override {
    for (PageRank rank{0}; !out.empty(); rank.value = next_rank(rank.value, pools.ranks())) {
      const std::size_t run = std::min(out.size(), static_cast<std::size_t>(pools.room(rank)));
      pools.take(rank, out.first(run));
      out = out.subspan(run);
    }
  }
};

/// Page i goes to rank (anchor + i) mod ranks, or the next one that has a page. Sequences start in
/// turn on each rank, so that many short ones do not all meet on the first.
class StripedPlacement final : public PlacementPolicy {
 public:
  void take(SequencePlacement& sequence, std::int64_t first, std::span<PageId> out,
            PagePools& pools) override {
    const int ranks = pools.ranks();
    if (sequence.anchor == SequencePlacement::kNone) {
      sequence.anchor = next_anchor_;
      next_anchor_ = next_rank(next_anchor_, ranks);
    }
    auto wanted = static_cast<std::int32_t>((sequence.anchor + first) % ranks);
    for (PageId& page : out) {
      std::int32_t rank = wanted;
      while (pools.room(PageRank{rank}) == 0) rank = next_rank(rank, ranks);
      page = pools.take(PageRank{rank});
      wanted = next_rank(wanted, ranks);
    }
  }

 private:
  std::int32_t next_anchor_ = 0;
};

/// The first pages of a sequence, up to the threshold, go to its home: the rank that had the most
/// free pages. Pages that were given up do not count, so a window below the threshold stays at
/// home. Each later page goes to the rank that holds the fewest of the sequence.
class BalancedPlacement final : public PlacementPolicy {
  // Below 0.02 of a pool: the fullest rank is to have no more than 1.02 times the mean.
  static constexpr std::int64_t kUnusedPartToLeaveFor = 64;

 public:
  BalancedPlacement(int page_size, std::int64_t home_threshold_tokens)
      : home_pages_(home_threshold_tokens / page_size + (home_threshold_tokens % page_size != 0)) {}

  void prepare(Sequence& sequence, std::int64_t pages, int ranks) const override {
    SequencePlacement& placement = sequence.placement;
    if (pages - placement.released <= home_pages_ || ranks == 1 || placement.pages_on) return;
    placement.pages_on = std::make_unique<std::int32_t[]>(static_cast<std::size_t>(ranks));
    for (PageId page : sequence.held_pages()) placement.added(page.rank());
  }

  void take(SequencePlacement& sequence, std::int64_t first, std::span<PageId> out,
            PagePools& pools) override {
    if (pools.ranks() == 1) return pools.take(PageRank{0}, out);
    const std::int64_t held = first - sequence.released;
    if (held < home_pages_) {
      const auto at_home =
          std::min<std::uint64_t>(out.size(), static_cast<std::uint64_t>(home_pages_ - held));
      take_home(sequence, out.first(at_home), pools);
      out = out.subspan(at_home);
    }
    for (PageId& page : out) {
      const PageRank rank = fewest(sequence, pools);
      page = pools.take(rank);
      sequence.added(rank);
    }
  }

 private:
  void take_home(SequencePlacement& sequence, std::span<PageId> out, PagePools& pools) {
    if (std::exchange(sequence.anchor_is_shared, false) &&
        sequence.anchor != SequencePlacement::kNone)
      leave_crowded_home(sequence, pools);
    while (!out.empty()) {
      if (sequence.anchor == SequencePlacement::kNone || pools.room(PageRank{sequence.anchor}) == 0)
        sequence.anchor = emptiest(pools);
      const PageRank home{sequence.anchor};
      const std::size_t run = std::min(out.size(), static_cast<std::size_t>(pools.room(home)));
      pools.take(home, out.first(run));
      sequence.added(home, static_cast<std::int32_t>(run));
      out = out.subspan(run);
    }
  }

  /// A sequence that begins with a cached prefix stays on the prefix's rank, unless another rank
  /// has room for a whole home more: a prompt that all requests begin with would otherwise bring
  /// all of them to one rank. On a crowded rank each home would evict whole chains, whose later
  /// pages are on all ranks; with pools of few homes these pages would stay unused on the other
  /// ranks.
  void leave_crowded_home(SequencePlacement& sequence, const PagePools& pools) const {
    const PageRank home{sequence.anchor};
    PageRank best = home;
    for (PageRank rank{0}; rank.value < pools.ranks(); ++rank.value)
      if (is_emptier(pools, rank, best)) best = rank;
    const bool has_room = pools.room(best) - pools.room(home) > home_pages_;
    const bool has_unused = pools.unused_pages(best) - pools.unused_pages(home) >
                            pools.size(home) / kUnusedPartToLeaveFor;
    if (has_room || has_unused || pools.is_behind(best, home, home_pages_))
      sequence.anchor = best.value;
  }

  /// Cached pages count as free. Among ranks with as many free pages the one with more unused pages
  /// comes first, then the one whose cached pages are older. Without this one rank would evict new
  /// pages while others keep unused ones.
  static bool is_emptier(const PagePools& pools, PageRank a, PageRank b) {
    if (pools.room(a) != pools.room(b)) return pools.room(a) > pools.room(b);
    if (pools.unused_pages(a) != pools.unused_pages(b))
      return pools.unused_pages(a) > pools.unused_pages(b);
    return pools.room(a) > 0 && pools.is_behind(a, b);
  }

  /// Returns the rank with the most free pages; among ranks that are equal in everything the first
  /// after the last choice, so that tiny sequences that come and go do not all meet on one rank.
  std::int32_t emptiest(const PagePools& pools) {
    std::int32_t best = first_choice_;
    std::int32_t rank = first_choice_;
    for (int i = 1; i < pools.ranks(); ++i) {
      rank = next_rank(rank, pools.ranks());
      if (is_emptier(pools, PageRank{rank}, PageRank{best})) best = rank;
    }
    first_choice_ = next_rank(best, pools.ranks());
    return best;
  }

  /// Returns the rank with the fewest pages of the sequence; among equal ones the emptiest, then
  /// the lowest. The number of pages and that of free ones are compared at once, as one 64-bit key.
  static PageRank fewest(const SequencePlacement& sequence, const PagePools& pools) {
    std::uint64_t best_key = std::numeric_limits<std::uint64_t>::max();
    PageRank best{0};
    for (PageRank rank{0}; rank.value < pools.ranks(); ++rank.value) {
      const auto held = static_cast<std::uint64_t>(sequence.pages_on[rank.value]);
      const auto free = static_cast<std::uint64_t>(pools.room(rank));
      if (free == 0) continue;
      const std::uint64_t key = held << 32 | (0xFFFF'FFFF - free);
      if (key > best_key || (key == best_key && !pools.is_behind(rank, best))) continue;
      best = rank;
      best_key = key;
    }
    return best;
  }

  std::int64_t home_pages_;
  std::int32_t first_choice_ = 0;
};

}  // namespace

void PlacementPolicy::prepare(Sequence&, std::int64_t, int) const {}

std::unique_ptr<PlacementPolicy> make_placement(const AllocatorOptions& options) {
  switch (options.placement) {
    case Placement::kBalanced:
      return std::make_unique<BalancedPlacement>(options.page_size, options.home_threshold_tokens);
    case Placement::kStriped:
      return std::make_unique<StripedPlacement>();
    case Placement::kPacked:
      return std::make_unique<PackedPlacement>();
  }
  throw InvalidArgument("unknown placement");
}

std::string_view name(Placement placement) {
  switch (placement) {
    case Placement::kBalanced:
      return "balanced";
    case Placement::kStriped:
      return "striped";
    case Placement::kPacked:
      return "packed";
  }
  return "unknown";
}

Placement placement_from(std::string_view text) {
  for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked})
    if (text == name(placement)) return placement;
  throw InvalidArgument(fmt::format("unknown placement '{}': balanced, striped or packed", text));
}

}  // namespace kvmesh
