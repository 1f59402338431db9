#include "launch/replay/belady.hpp"

#include <algorithm>
#include <compare>
#include <limits>
#include <set>
#include <unordered_map>

namespace kvmesh::replay {
namespace {

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

// The order of eviction is that of the largest first: the block whose next use comes last, of one
// request's blocks the last. All pages of a block are used together.
struct EvictionKey {
  std::int64_t next_use = kNever;
  std::int64_t depth = 0;
  std::uint32_t block = 0;
  friend auto operator<=>(const EvictionKey&, const EvictionKey&) = default;
};

struct Resident {
  EvictionKey key;
  std::int64_t pages = 0;  // the block's first ones
};

class Oracle {
 public:
  Oracle(const Trace& trace, const ReplayOptions& options)
      : trace_(trace),
        options_(options),
        capacity_(options.tokens_of_all_tiers() / options.page_size),
        page_size_(options.page_size) {
    // [request][block]: the next request with the block.
    std::unordered_map<std::uint32_t, std::int64_t> next;
    next_use_.resize(trace.requests.size());
    for (std::size_t i = trace.requests.size(); i-- > 0;) {
      if (!ever_fits(options_, trace.requests[i])) continue;
      for (const std::uint32_t block : trace.requests[i].blocks) {
        const auto found = next.find(block);
        next_use_[i].push_back(found == next.end() ? kNever : found->second);
        next[block] = static_cast<std::int64_t>(i);
      }
    }
  }

  BestHits run() {
    BestHits best;
    for (std::size_t i = 0; i < trace_.requests.size(); ++i) {
      const Request& request = trace_.requests[i];
      if (!ever_fits(options_, request)) continue;
      best.prompt_tokens += request.prompt_tokens;
      best.hit_tokens += hit_tokens(request);
      for (std::size_t block = 0; block < request.blocks.size(); ++block) use(i, block);
      shrink();
    }
    return best;
  }

 private:
  // Full pages of a block; a page may lie in two blocks only if pages do not divide blocks.
  std::int64_t full_pages(const Request& request, std::size_t block) const {
    const std::int64_t first = static_cast<std::int64_t>(block) * kBlockTokens;
    const std::int64_t last = std::min(first + kBlockTokens, request.prompt_tokens);
    return last / page_size_ - first / page_size_;
  }

  std::int64_t hit_tokens(const Request& request) const {
    std::int64_t tokens = 0;
    for (std::size_t block = 0; block < request.blocks.size(); ++block) {
      const auto found = resident_.find(request.blocks[block]);
      const std::int64_t here = found == resident_.end() ? 0 : found->second.pages;
      const std::int64_t all = full_pages(request, block);
      tokens += std::min(here, all) * page_size_;
      if (here < all) break;
      // The prompt may end with the first tokens of a page that an earlier one filled.
      if (here > all) tokens = request.prompt_tokens;
    }
    return tokens;
  }

  void use(std::size_t request, std::size_t block) {
    const std::uint32_t id = trace_.requests[request].blocks[block];
    Resident& resident = resident_[id];
    if (resident.pages > 0) order_.erase(resident.key);
    const std::int64_t pages =
        std::max(resident.pages, full_pages(trace_.requests[request], block));
    used_ += pages - resident.pages;
    resident = {{next_use_[request][block], static_cast<std::int64_t>(block), id}, pages};
    pages > 0 ? static_cast<void>(order_.insert(resident.key))
              : static_cast<void>(resident_.erase(id));
  }

  void shrink() {
    while (!order_.empty() && (used_ > capacity_ || order_.rbegin()->next_use == kNever)) {
      const auto last = std::prev(order_.end());
      Resident& resident = resident_.at(last->block);
      const bool never = last->next_use == kNever;
      const std::int64_t gone =
          never ? resident.pages : std::min(resident.pages, used_ - capacity_);
      resident.pages -= gone;
      used_ -= gone;
      if (resident.pages > 0) continue;
      resident_.erase(last->block);
      order_.erase(last);
    }
  }

  const Trace& trace_;
  const ReplayOptions& options_;
  std::int64_t capacity_;  // pages of all tiers
  std::int64_t page_size_;
  std::vector<std::vector<std::int64_t>> next_use_;
  std::unordered_map<std::uint32_t, Resident> resident_;
  std::set<EvictionKey> order_;
  std::int64_t used_ = 0;
};

}  // namespace

BestHits best_hits(const Trace& trace, const ReplayOptions& options) {
  return Oracle(trace, options).run();
}

}  // namespace kvmesh::replay
