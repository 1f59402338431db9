// Serves the requests of a trace from an allocator with its prefix cache, in the trace's own time.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/allocator.hpp"
#include "launch/replay/trace.hpp"

namespace kvmesh::replay {

struct ReplayOptions {
  int ranks = 1;
  std::int64_t capacity_tokens = 0;  ///< of all ranks together
  int page_size = 16;                ///< divides kBlockTokens
  Eviction eviction = Eviction::kHits;
  Placement placement = Placement::kBalanced;
  std::int64_t home_threshold_tokens = 2048;
  /// The time that each token of an answer takes. 0: prompts alone, one request after another, as
  /// hit rates and their bound are compared.
  double decode_ms = 0;
  /// Tokens of the host tiers of all ranks together, and of the files in a folder; 0: none.
  std::int64_t host_tier_tokens = 0;
  std::string tier_folder{};
  std::int64_t file_tier_tokens = 0;

  bool has_tiers() const { return host_tier_tokens > 0 || file_tier_tokens > 0; }
  std::int64_t tokens_of_all_tiers() const {
    return capacity_tokens + host_tier_tokens + file_tier_tokens;
  }
};

/// The allocator's options for a replay. @throws InvalidArgument if the page size does not divide
/// kBlockTokens, the capacity is less than a page of each rank, or a tier's size makes no sense.
AllocatorOptions allocator_options(const ReplayOptions& options);

/// Returns whether all pages of all ranks hold the prompt, and the answer if answers take time.
bool ever_fits(const ReplayOptions& options, const Request& request);

/// Returns part / all; 0 of nothing.
double rate_of(std::int64_t part, std::int64_t all);

/// New tokens of one sequence: of the prompt or the answer of a request.
struct Growth {
  SequenceId sequence;
  std::size_t request = 0;
  std::int64_t first = 0;  ///< position
  std::int64_t count = 0;
};

/// The target of a replay: an allocator alone, or a cache that computes. Its calls are those of
/// PageAllocator.
class Served {
 public:
  virtual ~Served() = default;
  virtual SequenceId begin(const PrefixKey& key) = 0;
  /// Appends to all of the batch. There are enough pages.
  virtual void append(std::span<const Growth> batch) = 0;
  virtual void publish(SequenceId sequence, const PrefixKey& key) = 0;
  virtual void erase(SequenceId sequence) = 0;
  virtual const PageAllocator& allocator() const = 0;
};

struct ReplayCounts {
  std::int64_t requests = 0;  ///< served
  std::int64_t refused = 0;   ///< longer than all pages together
  std::int64_t delayed = 0;   ///< had to wait for the end of others
  std::int64_t prompt_tokens = 0;
  std::int64_t hit_tokens = 0;
  std::int64_t evictions = 0;        ///< pages
  std::int64_t page_operations = 0;  ///< pages matched, appended and given back
  // Means over the arrivals of requests.
  double held = 0;           ///< part of all pages that sequences hold
  double cached = 0;         ///< part of all pages that are cached
  double fragmentation = 0;  ///< part of the held pages' room that holds no token
  /// Most pages of a rank over the mean, of the sums of both: pages that are held or cached, and
  /// pages that are held.
  double balance = 0;
  double held_balance = 0;
  double hit_rate() const;
};

/// A request is served when the pages for its whole prompt and answer are free beside what running
/// requests may still need; until then it and all later ones wait. Its prompt is published as soon
/// as it is appended. The answer grows with the time, and is not published: a trace does not say
/// which later prompt contains it.
class Replay {
 public:
  Replay(const Trace& trace, const ReplayOptions& options, Served& served);

  /// Calls `progress` with the number of requests so far, after each.
  ReplayCounts run(const std::function<void(std::size_t)>& progress);

 private:
  struct Running {
    SequenceId sequence;
    std::size_t request = 0;
    double start_s = 0;
    std::int64_t answered = 0;  // tokens in the cache
  };

  std::int64_t pages_for(std::int64_t tokens) const {
    return (tokens + options_.page_size - 1) / options_.page_size;
  }
  double end_of(const Running& running) const;
  std::int64_t answer_tokens(std::size_t request) const;
  void serve(std::size_t request);
  bool start(std::size_t request, const PrefixKey& key);
  void grow();
  void finish_first();
  void sample();

  const Trace& trace_;
  ReplayOptions options_;
  Served& served_;
  double now_s_ = 0;
  std::vector<Running> running_;  // by their end
  std::vector<Growth> batch_;
  ReplayCounts counts_;
  double held_ = 0, cached_ = 0, room_ = 0, tokens_ = 0, most_ = 0, most_held_ = 0;
  std::int64_t samples_ = 0;
};

}  // namespace kvmesh::replay
