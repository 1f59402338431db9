// Measures the page operations per second of one core.
//
// A page operation is one page handed out or one page freed; pages that are shared or looked up,
// and tokens appended without a new page, count nothing. Two mixes, both with the pools nine tenths
// full:
//
//   churn   serving: sequences come with a prompt (log-uniform, 16 to 8192 tokens), all running
//           ones decode one token per step in batches, one in sixteen starts as a fork of one
//           (parallel sampling), one step in eight rolls back a few speculated tokens, and
//           sequences end after 32 to 512 new tokens.
//   pages   the pools alone, through the allocator: whole sequences of 16 to 8192 tokens are
//           created, filled and erased in random order.
//
// Compare rates only from one machine: at 4 M pages they measure its caches.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "kvmesh/allocator.hpp"

namespace {

using kvmesh::AppendRequest;
using kvmesh::PageAllocator;
using kvmesh::SequenceId;

constexpr int kPageSize = 16;
constexpr std::size_t kBatch = 256;  // sequences that decode in one append

kvmesh::AllocatorOptions options_of(const benchmark::State& state) {
  kvmesh::AllocatorOptions options;
  options.placement = static_cast<kvmesh::Placement>(state.range(0));
  options.ranks = static_cast<int>(state.range(1));
  options.pages_per_rank = state.range(2) / options.ranks;
  options.page_size = kPageSize;
  return options;
}

/// Random lengths, drawn before the clock starts: drawing costs as much as a page operation.
class Lengths {
 public:
  Lengths(double smallest, double largest) : lengths_(1 << 16) {
    std::mt19937_64 random(7);
    std::uniform_real_distribution<double> exponent(std::log2(smallest), std::log2(largest));
    for (std::int64_t& length : lengths_)
      length = static_cast<std::int64_t>(std::exp2(exponent(random)));
  }
  std::int64_t next() { return lengths_[next_++ % lengths_.size()]; }

 private:
  std::vector<std::int64_t> lengths_;
  std::size_t next_ = 0;
};

/// A serving engine's traffic. Page operations are counted by the number of free pages.
class Churn {
 public:
  explicit Churn(const kvmesh::AllocatorOptions& options)
      : allocator_(options), low_water_(options.pages_per_rank * options.ranks / 10) {
    while (allocator_.free_pages() > low_water_) admit();
  }

  /// One engine step: a batch decodes, finished sequences are erased, new ones fill the room.
  void step() {
    batch_.clear();
    for (std::size_t i = 0; i < std::min(kBatch, running_.size()); ++i)
      batch_.push_back({running_[(cursor_ + i) % running_.size()].id, 1});
    const std::int64_t before = allocator_.free_pages();
    copies_ += static_cast<std::int64_t>(allocator_.append(batch_).size());
    page_operations_ += before - allocator_.free_pages();
    tokens_ += static_cast<std::int64_t>(batch_.size());
    if (++steps_ % 8 == 0) roll_back(batch_.front().sequence);
    retire(batch_.size());
    while (allocator_.free_pages() > low_water_) admit();
  }

  std::int64_t page_operations() const { return page_operations_; }
  std::int64_t tokens() const { return tokens_; }
  std::int64_t copies() const { return copies_; }
  std::size_t sequences() const { return running_.size(); }

 private:
  struct Running {
    SequenceId id;
    std::int64_t left;  // tokens to decode
  };

  void admit() {
    const std::int64_t before = allocator_.free_pages();
    SequenceId id;
    if (++admitted_ % 16 == 0) {
      id = allocator_.fork(running_[admitted_ * 2654435761u % running_.size()].id);
    } else {
      id = allocator_.create();
      copies_ += static_cast<std::int64_t>(allocator_.append(id, prompts_.next()).size());
    }
    page_operations_ += before - allocator_.free_pages();
    running_.push_back({id, outputs_.next()});
  }

  void roll_back(SequenceId id) {
    const std::int64_t before = allocator_.free_pages();
    allocator_.truncate(id, std::max<std::int64_t>(allocator_.length(id) - 4, 1));
    page_operations_ += allocator_.free_pages() - before;
  }

  /// Erases the finished ones of the last `count` sequences. The last running one takes the empty
  /// place.
  void retire(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t place = (cursor_ + i) % running_.size();
      if (--running_[place].left > 0) continue;
      const std::int64_t before = allocator_.free_pages();
      allocator_.erase(running_[place].id);
      page_operations_ += allocator_.free_pages() - before;
      running_[place] = running_.back();
      running_.pop_back();
    }
    cursor_ = (cursor_ + count) % running_.size();
  }

  PageAllocator allocator_;
  std::int64_t low_water_;
  std::vector<Running> running_;
  std::vector<AppendRequest> batch_;
  Lengths prompts_{16, 8192};
  Lengths outputs_{32, 512};
  std::size_t cursor_ = 0;
  std::uint64_t admitted_ = 0;
  std::int64_t steps_ = 0;
  std::int64_t page_operations_ = 0;
  std::int64_t tokens_ = 0;
  std::int64_t copies_ = 0;
};

void churn(benchmark::State& state) {
  Churn engine(options_of(state));
  // Runs until most sequences have been replaced: the order of the free lists is then that of a
  // server that has run for long.
  const std::int64_t warm = state.range(2) * 2 + engine.page_operations();
  while (engine.page_operations() < warm) engine.step();

  const std::int64_t operations = engine.page_operations();
  const std::int64_t tokens = engine.tokens();
  const std::int64_t copies = engine.copies();
  for (auto _ : state) engine.step();
  state.counters["page_ops"] = benchmark::Counter(
      static_cast<double>(engine.page_operations() - operations), benchmark::Counter::kIsRate);
  state.counters["tokens"] = benchmark::Counter(static_cast<double>(engine.tokens() - tokens),
                                                benchmark::Counter::kIsRate);
  state.counters["copies"] = benchmark::Counter(static_cast<double>(engine.copies() - copies),
                                                benchmark::Counter::kIsRate);
  state.counters["sequences"] = static_cast<double>(engine.sequences());
}

void pages(benchmark::State& state) {
  PageAllocator allocator(options_of(state));
  const std::int64_t low_water = allocator.free_pages() / 10;
  Lengths lengths(16, 8192);
  std::vector<SequenceId> held;
  std::int64_t operations = 0;
  std::uint64_t draw = 0;

  const auto fill = [&] {
    while (allocator.free_pages() > low_water) {
      held.push_back(allocator.create());
      const std::int64_t before = allocator.free_pages();
      allocator.append(held.back(), lengths.next());
      operations += before - allocator.free_pages();
    }
  };
  const auto replace_one = [&] {
    const std::size_t victim = ++draw * 0x9E37'79B9'7F4A'7C15u % held.size();
    const std::int64_t before = allocator.free_pages();
    allocator.erase(held[victim]);
    operations += allocator.free_pages() - before;
    held[victim] = held.back();
    held.pop_back();
    fill();
  };
  fill();
  while (operations < 4 * state.range(2)) replace_one();

  operations = 0;
  for (auto _ : state) replace_one();
  state.counters["page_ops"] =
      benchmark::Counter(static_cast<double>(operations), benchmark::Counter::kIsRate);
  state.counters["sequences"] = static_cast<double>(held.size());
}

void axes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"placement", "ranks", "pages"})
      ->ArgsProduct({{0, 1, 2}, {1, 8}, {200'000, 4'000'000}});
}

BENCHMARK(churn)->Apply(axes);
BENCHMARK(pages)->Apply(axes);

}  // namespace
