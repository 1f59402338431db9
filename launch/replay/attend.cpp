#include "launch/replay/attend.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kvmesh/kv_cache.hpp"
#include "launch/replay/cpu_time.hpp"
#include "launch/verify/findings.hpp"
#include "launch/verify/random.hpp"
#include "launch/verify/reference.hpp"

namespace kvmesh::replay {
namespace {

constexpr int kQueryHeads = 2, kDim = 16;
constexpr std::int64_t kMostQueries = 4;  // of a sequence in a batch

/// Keys and values of tokens: rows of a table of random numbers, so that making them costs no more
/// than a copy. Another token, or the same at another position, mostly has another row.
class Contents {
 public:
  Contents() : numbers_(verify::Random(1).reals((kRows + 1) * kDim)) {}
  void put(std::int32_t token, std::int64_t position, float* k, float* v) const {
    const auto row = static_cast<std::size_t>((std::int64_t{token} * 31 + position * 7) % kRows);
    std::copy_n(numbers_.begin() + static_cast<std::ptrdiff_t>(row * kDim), kDim, k);
    std::copy_n(numbers_.begin() + static_cast<std::ptrdiff_t>((row + 1) * kDim), kDim, v);
  }

 private:
  static constexpr std::int64_t kRows = 4093;
  std::vector<float> numbers_;
};

/// The tokens of a request at positions [first, first + count).
std::vector<std::int32_t> tokens_of(const Trace& trace, const Growth& growth) {
  const Request& request = trace.requests[growth.request];
  if (growth.first >= request.prompt_tokens)
    return answer_of(growth.request, growth.first - request.prompt_tokens, growth.count);
  const std::vector<std::int32_t> prompt = prompt_of(request);
  return {prompt.begin() + growth.first, prompt.begin() + growth.first + growth.count};
}

/// One rank's cache.
class Computed final : public Served {
 public:
  Computed(Mesh& mesh, const Trace& trace, const ReplayOptions& options, std::int64_t every)
      : trace_(trace),
        every_(every),
        compares_(mesh.rank().value == 0),
        cache_(mesh, cache_options(options)),
        random_(2) {}

  SequenceId begin(const PrefixKey& key) override {
    return timed(counts_.seconds, [&] { return cache_.create_with_prefix(key); });
  }
  void publish(SequenceId sequence, const PrefixKey& key) override {
    timed(counts_.seconds, [&] { cache_.publish(sequence, key); });
  }
  void erase(SequenceId sequence) override {
    timed(counts_.seconds, [&] { cache_.erase(sequence); });
  }
  const PageAllocator& allocator() const override { return cache_.allocator(); }

  void append(std::span<const Growth> batch) override {
    entries_.clear();
    k_.clear();
    v_.clear();
    for (const Growth& growth : batch) {
      entries_.push_back({growth.sequence, growth.count, std::min(growth.count, kMostQueries)});
      add_contents(growth, k_, v_);
    }
    timed(counts_.seconds, [&] {
      step_ ? cache_.replan(*step_, entries_) : static_cast<void>(step_ = cache_.plan(entries_));
    });
    const auto tokens = std::ssize(k_) / kDim;
    const ConstTensorView k = tensor(k_.data(), {tokens, 1, kDim});
    const ConstTensorView v = tensor(v_.data(), {tokens, 1, kDim});
    if (every_ == 0 || ++batches_ % every_ != 0)
      return timed(counts_.seconds, [&] { step_->append(0, k, v); });
    const std::int64_t queries = step_->query_tokens();
    q_ = random_.reals(queries * kQueryHeads * kDim);
    o_.assign(q_.size(), std::nanf(""));
    const auto shaped = [&](auto* data) { return tensor(data, {queries, kQueryHeads, kDim}); };
    step_->run(0, {.q = shaped(q_.data()), .k = k, .v = v}, {.o = shaped(o_.data())});
    if (compares_) compare(batch);
  }

  /// Collective.
  AttendCounts counts() {
    cache_.check_replicas();
    counts_.wrong = findings_.failed();
    counts_.max_error = findings_.max_error();
    if (!findings_.good()) counts_.first_wrong = findings_.messages().front();
    counts_.tiers = sum_over_ranks(cache_.tier_statistics());
    return counts_;
  }

 private:
  static CacheOptions cache_options(const ReplayOptions& options) {
    const AllocatorOptions pools = allocator_options(options);
    constexpr std::int64_t kTokenBytes = 2 * kDim * sizeof(float);
    const std::int64_t host_pages = options.host_tier_tokens / options.page_size / options.ranks;
    return {.layers = 1,
            .q_heads = kQueryHeads,
            .kv_heads = 1,
            .k_dim = kDim,
            .page_size = pools.page_size,
            .pages_per_rank = pools.pages_per_rank,
            .dtype = Dtype::kFloat32,
            .placement = pools.placement,
            .home_threshold_tokens = pools.home_threshold_tokens,
            .prefix = pools.prefix,
            .tiers = {.host_bytes = host_pages * options.page_size * kTokenBytes,
                      .directory = options.tier_folder,
                      .model = "replay",
                      .file_bytes = options.file_tier_tokens * kTokenBytes}};
  }

  TierStatistics sum_over_ranks(const TierStatistics& mine) {
    TierStatistics sum{.pages_back = mine.pages_back};
    const auto add = [](auto& to, const auto& more, auto... numbers) {
      ((to.*numbers += more.*numbers), ...);
    };
    using C = TierCounts;
    using F = FileFaults;
    for (const TierStatistics& of : all_gather_value(cache_.mesh().world(), mine, "tiers")) {
      for (const auto tier : {&TierStatistics::host, &TierStatistics::file})
        add(sum.*tier, of.*tier, &C::pages, &C::stores, &C::loads, &C::drops, &C::removed);
      add(sum.faults, of.faults, &F::corrupt, &F::truncated, &F::foreign, &F::full, &F::denied,
          &F::io);
    }
    return sum;
  }

  void add_contents(const Growth& growth, std::vector<float>& k, std::vector<float>& v) const {
    std::size_t at = k.size();
    k.resize(at + static_cast<std::size_t>(growth.count) * kDim);
    v.resize(k.size());
    std::int64_t position = growth.first;
    for (const std::int32_t token : tokens_of(trace_, growth)) {
      contents_.put(token, position++, k.data() + at, v.data() + at);
      at += kDim;
    }
  }

  void compare(std::span<const Growth> batch) {
    ++counts_.batches;
    std::int64_t row = -1;  // the last query of each sequence
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const Growth& growth = batch[i];
      const std::int64_t end = growth.first + growth.count;
      const std::int64_t prompt = trace_.requests[growth.request].prompt_tokens;
      verify::DenseSequence all{.kv_heads = 1, .k_dim = kDim, .v_dim = kDim, .k = {}, .v = {}};
      add_contents({growth.sequence, growth.request, 0, std::min(end, prompt)}, all.k, all.v);
      if (end > prompt)
        add_contents({growth.sequence, growth.request, prompt, end - prompt}, all.k, all.v);
      row += entries_[i].query_tokens;
      for (int head = 0; head < kQueryHeads; ++head)
        compare_row(all, row, head, static_cast<std::int32_t>(i), end, growth.request);
    }
  }

  void compare_row(const verify::DenseSequence& all, std::int64_t row, int head, std::int32_t b,
                   std::int64_t end, std::size_t request) {
    const std::int64_t at = (row * kQueryHeads + head) * kDim;
    const verify::ReferenceRow want =
        verify::reference_row(all, q_.data() + at, 1.0 / std::sqrt(double{kDim}), mods::causal(),
                              {}, b, head, kQueryHeads, static_cast<std::int32_t>(end - 1));
    ++counts_.rows;
    for (std::int64_t d = 0; d < kDim; ++d) {
      findings_.compare(
          o_[static_cast<std::size_t>(at + d)], want.o[static_cast<std::size_t>(d)], {}, [&] {
            return fmt::format("request {} at token {}, head {}, o[{}]", request, end - 1, head, d);
          });
    }
  }

  const Trace& trace_;
  std::int64_t every_;
  bool compares_;
  KvCache cache_;
  Contents contents_;
  verify::Random random_;
  verify::Findings findings_;
  std::optional<StepPlan> step_;
  std::vector<BatchEntry> entries_;
  std::vector<float> q_, k_, v_, o_;
  std::int64_t batches_ = 0;
  AttendCounts counts_;
};

}  // namespace

AttendCounts attend(const Trace& trace, const ReplayOptions& options, std::int64_t every,
                    const std::function<void(std::size_t)>& progress) {
  AttendCounts counts;
  run_on_threads(options.ranks,
                 [&](Mesh& mesh) {
                   const bool speaks = mesh.rank().value == 0;
                   Computed computed(mesh, trace, options, every);
                   Replay replay(trace, options, computed);
                   const ReplayCounts served =
                       replay.run([&](std::size_t done) { speaks ? progress(done) : void(); });
                   AttendCounts mine = computed.counts();
                   mine.served = served;
                   if (speaks) counts = std::move(mine);
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
  return counts;
}

}  // namespace kvmesh::replay
