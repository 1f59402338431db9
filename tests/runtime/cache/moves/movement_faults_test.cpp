// Moves of which every copy and every exchange fails once: nothing is lost, and nothing half done.
#include <gtest/gtest.h>

#include <functional>

#include "tests/runtime/cache/moves/moving_cache.hpp"

namespace kvmesh::test {
namespace {

/// Lets `move` fail on `failing` at each of its steps in turn. Returns how many it has.
int fail_each_step(MovingCache& moving, Faults& faults, const std::function<void(KvCache&)>& move,
                   int failing) {
  const std::vector<double> expected = moving.contents();
  for (int fails = 0;; ++fails) {
    const auto tables = moving.all_tables();
    const bool mine = moving.mesh().rank().value == failing;
    faults = {.fails = mine ? fails : -1};
    bool threw = false;
    try {
      move(moving.cache());
    } catch (const Error&) {
      threw = true;
    }
    const auto injected = static_cast<std::uint8_t>(mine && faults.steps > fails);
    const auto all = all_gather_value(moving.mesh().world(), injected, "was it injected");
    faults = {};
    EXPECT_EQ(moving.contents(), expected) << "step " << fails;
    moving.check();
    if (all[static_cast<std::size_t>(failing)] == 0) {
      EXPECT_FALSE(threw);
      return fails;
    }
    EXPECT_TRUE(threw) << "step " << fails;
    EXPECT_EQ(moving.all_tables(), tables) << "step " << fails;
  }
}

TEST(MovementFaults, AfterEachFailedStepAllIsAsBefore) {
  for (int failing = 0; failing < 3; ++failing) {
    LoopbackRanks<3>::run([&](Communicator& comm) {
      Faults faults;
      MovingCache moving(comm, [&](std::unique_ptr<Backend> real) {
        return std::make_unique<FaultyBackend>(std::move(real), faults);
      });
      int steps = 0;
      const auto fail = [&](const auto& move) {
        steps += fail_each_step(moving, faults, move, failing);
      };
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
