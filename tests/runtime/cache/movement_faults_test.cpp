// Moves of which every copy and every exchange fails once: nothing is lost, and nothing half done.
#include <gtest/gtest.h>

#include <functional>

#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/runtime/cache/faulty_backend.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

/// A cache of two groups on some ranks with two sequences, a fork and cached pages.
class Moving {
 public:
  Moving(Communicator& comm)
      : mesh_(comm, {.threads = 1, .device = DeviceChoice::kCpu}), cache_(mesh_, options()) {
    for (CacheGroup& group : inside(cache_).groups)
      group.backend = std::make_unique<FaultyBackend>(std::move(group.backend), faults_);
    sequences_ = {cache_.create(), cache_.create()};
    write(sequences_[0], 22, 1);
    write(sequences_[1], 6, 2);
    sequences_.push_back(cache_.fork(sequences_[0]));
    PrefixKey key = cache_.make_prefix_key();
    key.append(std::vector<std::int32_t>(8, 5));
    const SequenceId left = cache_.create();
    write(left, 8, 3);
    cache_.publish(left, key);
    cache_.erase(left);
    expected_ = contents();
  }

  static CacheOptions options() {
    CacheOptions options = small_cache_options();
    options.pages_per_rank = 12;
    options.home_threshold_tokens = 8;
    options.prefix.enabled = true;
    options.groups = {{.layers = {1}}};
    return options;
  }

  /// Lets `move` fail on `failing` at each of its steps in turn. Returns how many it has.
  int fail_each_step(const std::function<void(KvCache&)>& move, int failing) {
    for (int fails = 0;; ++fails) {
      const auto tables = all_tables();
      const bool mine = mesh_.rank().value == failing;
      faults_ = {.fails = mine ? fails : -1};
      bool threw = false;
      try {
        move(cache_);
      } catch (const Error&) {
        threw = true;
      }
      const auto injected = static_cast<std::uint8_t>(mine && faults_.steps > fails);
      const auto all = all_gather_value(mesh_.world(), injected, "was it injected");
      faults_ = {};
      EXPECT_EQ(contents(), expected_) << "step " << fails;
      cache_.check_replicas();
      for (int g = 0; g < cache_.groups(); ++g) cache_.allocator(g).verify_integrity();
      if (all[static_cast<std::size_t>(failing)] == 0) {
        EXPECT_FALSE(threw);
        return fails;
      }
      EXPECT_TRUE(threw) << "step " << fails;
      EXPECT_EQ(all_tables(), tables) << "step " << fails;
    }
  }

 private:
  /// Tokens whose keys and values are `value` and their position.
  void write(SequenceId sequence, std::int64_t tokens, float value) {
    const CacheOptions& o = cache_.options();
    StepPlan plan = cache_.plan({{sequence, tokens, 0}});
    std::vector<float> numbers;
    for (std::int64_t t = 0; t < tokens; ++t)
      numbers.insert(numbers.end(), static_cast<std::size_t>(o.kv_heads * o.k_dim),
                     value + static_cast<float>(t) * 0.125f);
    for (int layer = 0; layer < o.layers; ++layer)
      plan.append(layer, tensor(numbers.data(), {tokens, o.kv_heads, o.k_dim}),
                  tensor(numbers.data(), {tokens, o.kv_heads, o.v_dim}));
  }

  std::vector<std::vector<PageId>> all_tables() const {
    std::vector<std::vector<PageId>> tables;
    for (int g = 0; g < cache_.groups(); ++g)
      for (const SequenceId id : sequences_) {
        const auto pages = cache_.allocator(g).pages(id);
        tables.emplace_back(pages.begin(), pages.end());
      }
    return tables;
  }

  /// The first key of each token of each sequence in each layer, as the sum over the ranks, of
  /// which one has it.
  std::vector<double> contents() {
    std::vector<double> all;
    for (int layer = 0; layer < cache_.options().layers; ++layer) {
      const TensorView k = cache_.planes(layer)[0];
      const PageAllocator& allocator = cache_.allocator(cache_.group_of(layer));
      for (const SequenceId id : sequences_)
        for (std::int64_t at = 0; at < allocator.length(id); ++at) {
          const PageId page = allocator.pages(id)[static_cast<std::size_t>(at / 4)];
          const std::int64_t place = page.index() * k.stride(0) + at % 4 * k.stride(2);
          const bool is_mine = page.rank() == mesh_.page_rank();
          all.push_back(is_mine ? double{static_cast<const float*>(k.data)[place]} : 0);
        }
    }
    all_reduce_sum(mesh_.world(), all);
    return all;
  }

  Mesh mesh_;
  Faults faults_;
  KvCache cache_;
  std::vector<SequenceId> sequences_;
  std::vector<double> expected_;
};

TEST(MovementFaults, AfterEachFailedStepAllIsAsBefore) {
  for (int failing = 0; failing < 3; ++failing) {
    LoopbackRanks<3>::run([&](Communicator& comm) {
      Moving moving(comm);
      int steps = 0;
      const auto fail = [&](const auto& move) { steps += moving.fail_each_step(move, failing); };
      fail([](KvCache& cache) { cache.drain(PageRank{1}); });
      fail([](KvCache& cache) { cache.add_rank(PageRank{1}); });
      fail([](KvCache& cache) { cache.rebalance(100); });
      fail([](KvCache& cache) { cache.resize(PageRank{2}, 2); });
      fail([](KvCache& cache) { cache.resize(PageRank{2}, 12); });
      fail([](KvCache& cache) { cache.drain(PageRank{0}); });
      EXPECT_GT(steps, 8);
    });
  }
}

}  // namespace
}  // namespace kvmesh::test
