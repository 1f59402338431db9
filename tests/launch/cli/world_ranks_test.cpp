// Ranks are threads; each makes a mesh of two rows and two columns, and one of them stays away.
#include "launch/cli/world_ranks.hpp"

#include <gtest/gtest.h>

#include <chrono>

namespace kvmesh::launch {
namespace {

using namespace std::chrono_literals;

TEST(WorldRanks, TimeoutOfAGroupNamesRanksOfTheJob) {
  run_loopback(4, [](Communicator& comm) {
    const auto world = with_world_ranks(comm);
    const auto odd_or_even = world->split(comm.rank().value % 2, comm.rank().value);
    odd_or_even->set_deadline(200ms);
    barrier(*world);
    if (comm.rank().value == 1) {
      try {
        barrier(*odd_or_even, "here");
        ADD_FAILURE() << "rank 3 did not come";
      } catch (const Timeout& error) {
        EXPECT_EQ(error.waiter(), Rank{1});
        EXPECT_EQ(error.late(), std::vector{Rank{3}});
        EXPECT_STREQ(error.what(), "rank 1 waited 200 ms in here for rank 3");
      }
    }
    barrier(*world);
  });
}

TEST(WorldRanks, LostPeerOfAGroupIsNamedByItsRankInTheJob) {
  run_loopback(4, [](Communicator& comm) {
    struct Lost final : Communicator {
      explicit Lost(std::unique_ptr<Communicator> comm) : inner(std::move(comm)) {}
      Rank rank() const override { return inner->rank(); }
      int size() const override { return inner->size(); }
      std::string_view kind() const override { return "lost"; }
      void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                    std::string_view operation) override {
        if (operation == "lose") throw PeerLost(rank(), Rank{1}, "lose", "it went");
        inner->exchange(outgoing, incoming, operation);
      }
      std::unique_ptr<Communicator> split(int color, int key) override {
        return std::make_unique<Lost>(inner->split(color, key));
      }
      void set_deadline(std::chrono::milliseconds deadline) override {
        inner->set_deadline(deadline);
      }
      std::chrono::milliseconds deadline() const override { return inner->deadline(); }
      std::uint64_t sent_bytes() const override { return inner->sent_bytes(); }
      std::unique_ptr<Communicator> inner;
    };
    const auto world = with_world_ranks(std::make_unique<Lost>(comm.split(0, comm.rank().value)));
    const auto half = world->split(comm.rank().value / 2, comm.rank().value);
    if (comm.rank().value != 2) return;
    try {
      barrier(*half, "lose");
      ADD_FAILURE() << "nobody was lost";
    } catch (const PeerLost& error) {
      EXPECT_STREQ(error.what(), "rank 2 lost rank 3 in lose: it went");
    }
  });
}

}  // namespace
}  // namespace kvmesh::launch
