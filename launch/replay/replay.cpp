#include "launch/replay/replay.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvmesh::replay {
namespace {

// So that its bytes stay far below 2^63.
constexpr std::int64_t kMostTierTokens = std::int64_t{1} << 40;

}  // namespace

AllocatorOptions allocator_options(const ReplayOptions& options) {
  if (options.page_size < 1 || kBlockTokens % options.page_size != 0) {
    throw InvalidArgument(fmt::format("a page of {} tokens does not divide a trace's block of {}",
                                      options.page_size, kBlockTokens));
  }
  if (!(options.decode_ms >= 0) || !std::isfinite(options.decode_ms)) {
    throw InvalidArgument(fmt::format("a token that takes {} ms", options.decode_ms));
  }
  if (options.host_tier_tokens < 0 || options.file_tier_tokens < 0 ||
      options.host_tier_tokens > kMostTierTokens || options.file_tier_tokens > kMostTierTokens ||
      options.tier_folder.empty() != (options.file_tier_tokens == 0)) {
    throw InvalidArgument(fmt::format(
        "a host tier of {} tokens, and a file tier of {} tokens in the folder '{}': a folder and "
        "its tokens go together, and a tier has at most 2^40",
        options.host_tier_tokens, options.file_tier_tokens, options.tier_folder));
  }
  const std::int64_t pages = options.capacity_tokens / options.page_size / options.ranks;
  if (pages < 1) {
    throw InvalidArgument(fmt::format("{} tokens are not a page of {} tokens for each of {} ranks",
                                      options.capacity_tokens, options.page_size, options.ranks));
  }
  return {.ranks = options.ranks,
          .pages_per_rank = pages,
          .page_size = options.page_size,
          .placement = options.placement,
          .home_threshold_tokens = options.home_threshold_tokens,
          .prefix = {.enabled = true, .hash = PrefixHash::kXxh3, .eviction = options.eviction}};
}

bool ever_fits(const ReplayOptions& options, const Request& request) {
  const std::int64_t tokens =
      request.prompt_tokens + (options.decode_ms > 0 ? request.answer_tokens : 0);
  const AllocatorOptions pools = allocator_options(options);
  return (tokens + options.page_size - 1) / options.page_size <= pools.ranks * pools.pages_per_rank;
}

double rate_of(std::int64_t part, std::int64_t all) {
  return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all);
}

double ReplayCounts::hit_rate() const { return rate_of(hit_tokens, prompt_tokens); }

Replay::Replay(const Trace& trace, const ReplayOptions& options, Served& served)
    : trace_(trace), options_(options), served_(served) {}

ReplayCounts Replay::run(const std::function<void(std::size_t)>& progress) {
  for (std::size_t request = 0; request < trace_.requests.size(); ++request) {
    serve(request);
    progress(request + 1);
  }
  while (!running_.empty()) finish_first();
  const double count = std::max<double>(1, static_cast<double>(samples_));
  const AllocatorOptions& pools = served_.allocator().options();
  const double pages = pools.ranks * static_cast<double>(pools.pages_per_rank);
  counts_.evictions = served_.allocator().evicted_pages();
  counts_.held = held_ / count / pages;
  counts_.cached = cached_ / count / pages;
  counts_.fragmentation = room_ > 0 ? 1 - tokens_ / room_ : 0;
  counts_.balance = most_ > 0 ? most_ * pools.ranks / (held_ + cached_) : 1;
  counts_.held_balance = held_ > 0 ? most_held_ * pools.ranks / held_ : 1;
  return counts_;
}

std::int64_t Replay::answer_tokens(std::size_t request) const {
  return options_.decode_ms > 0 ? trace_.requests[request].answer_tokens : 0;
}

double Replay::end_of(const Running& running) const {
  return running.start_s +
         static_cast<double>(answer_tokens(running.request)) * options_.decode_ms / 1e3;
}

void Replay::serve(std::size_t number) {
  const Request& request = trace_.requests[number];
  now_s_ = std::max(now_s_, request.arrival_s);
  while (!running_.empty() && end_of(running_.front()) <= now_s_) finish_first();
  grow();
  PrefixKey key(served_.allocator().prefix_rules());
  key.append(prompt_of(request));
  bool is_delayed = false;
  while (!start(number, key)) {
    if (running_.empty()) {
      ++counts_.refused;
      return;
    }
    is_delayed = true;
    now_s_ = std::max(now_s_, end_of(running_.front()));
    finish_first();
    grow();
  }
  counts_.delayed += is_delayed;
  sample();
  if (options_.decode_ms == 0) finish_first();
}

// False if there is no room for it now.
bool Replay::start(std::size_t number, const PrefixKey& key) {
  const Request& request = trace_.requests[number];
  const SequenceId sequence = served_.begin(key);
  const PageAllocator& allocator = served_.allocator();
  const std::int64_t hit = allocator.length(sequence);
  std::int64_t needed =
      pages_for(request.prompt_tokens + answer_tokens(number)) - hit / options_.page_size;
  for (const Running& other : running_) {
    needed +=
        pages_for(trace_.requests[other.request].prompt_tokens + answer_tokens(other.request)) -
        std::ssize(allocator.pages(other.sequence));
  }
  if (needed > allocator.free_pages()) {
    served_.erase(sequence);
    return false;
  }
  const Growth rest{sequence, number, hit, request.prompt_tokens - hit};
  if (rest.count > 0) served_.append({&rest, 1});
  served_.publish(sequence, key);
  ++counts_.requests;
  counts_.prompt_tokens += request.prompt_tokens;
  counts_.hit_tokens += hit;
  counts_.page_operations += pages_for(request.prompt_tokens);
  const Running running{.sequence = sequence, .request = number, .start_s = now_s_};
  const auto place = std::ranges::upper_bound(running_, end_of(running), {},
                                              [&](const Running& other) { return end_of(other); });
  running_.insert(place, running);
  return true;
}

// Appends what the running requests have generated by now.
void Replay::grow() {
  batch_.clear();
  for (Running& running : running_) {
    const auto done =
        static_cast<std::int64_t>((now_s_ - running.start_s) * 1e3 / options_.decode_ms);
    const std::int64_t answered =
        std::clamp(done, running.answered, answer_tokens(running.request));
    if (answered == running.answered) continue;
    batch_.push_back({running.sequence, running.request,
                      trace_.requests[running.request].prompt_tokens + running.answered,
                      answered - running.answered});
    running.answered = answered;
  }
  if (!batch_.empty()) served_.append(batch_);
}

void Replay::finish_first() {
  const Running running = running_.front();
  running_.erase(running_.begin());
  const std::int64_t left = answer_tokens(running.request) - running.answered;
  if (left > 0) {
    const Growth rest{running.sequence, running.request,
                      trace_.requests[running.request].prompt_tokens + running.answered, left};
    served_.append({&rest, 1});
  }
  counts_.page_operations += std::ssize(served_.allocator().pages(running.sequence));
  served_.erase(running.sequence);
}

void Replay::sample() {
  const PageAllocator& allocator = served_.allocator();
  const AllocatorOptions& pools = allocator.options();
  ++samples_;
  std::int64_t most = 0, most_held = 0, held = 0;
  for (PageRank rank{0}; rank.value < pools.ranks; ++rank.value) {
    const std::int64_t here = pools.pages_per_rank - allocator.free_pages(rank);
    most = std::max(most, here + allocator.cached_pages(rank));
    most_held = std::max(most_held, here);
    held += here;
  }
  most_ += static_cast<double>(most);
  most_held_ += static_cast<double>(most_held);
  held_ += static_cast<double>(held);
  cached_ += static_cast<double>(allocator.cached_pages());
  for (const Running& running : running_) {
    tokens_ += static_cast<double>(allocator.length(running.sequence));
    room_ += static_cast<double>(allocator.capacity(running.sequence));
  }
}

}  // namespace kvmesh::replay
