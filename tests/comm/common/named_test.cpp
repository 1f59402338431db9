// Ranks are threads.
#include "comm/common/named.hpp"

#include <gtest/gtest.h>

#include <chrono>

#include "comm/common/size_mismatch.hpp"
#include "comm/common/subset.hpp"

namespace kvmesh {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Communicator> odd_or_even(Communicator& comm) {
  return split_named(comm, comm.rank().value % 2, comm.rank().value);
}

TEST(Named, ATimeoutNamesRanksOfTheWhole) {
  run_loopback(4, [](Communicator& comm) {
    const auto group = odd_or_even(comm);
    group->set_deadline(200ms);
    barrier(comm);
    if (comm.rank().value == 1) {
      try {
        barrier(*group, "here");
        ADD_FAILURE() << "rank 3 did not come";
      } catch (const Timeout& error) {
        EXPECT_EQ(error.waiter(), Rank{1});
        EXPECT_EQ(error.late(), std::vector{Rank{3}});
        EXPECT_STREQ(error.what(), "rank 1 waited 200 ms in here for rank 3");
      }
    }
    barrier(comm);
  });
}

TEST(Named, PartsOfAGroupHaveItsNames) {
  run_loopback(4, [](Communicator& comm) {
    const auto group = odd_or_even(comm);
    const std::vector<Rank> opposite{group->name_of(Rank{1}), group->name_of(Rank{0})};
    EXPECT_EQ(names_in(*group->split(0, -group->rank().value)), opposite);
    const auto part = split_named(*group, 0, -group->rank().value);
    EXPECT_EQ(names_in(*part), opposite);
    part->set_deadline(100ms);
    if (comm.rank().value == 3) {
      try {
        barrier(*part);
        ADD_FAILURE() << "rank 1 did not come";
      } catch (const Timeout& error) {
        EXPECT_EQ(error.late(), std::vector{Rank{1}});
      }
    }
    barrier(comm);
    EXPECT_EQ(names_in(Subset(*group, {group->rank()})), std::vector{comm.rank()});
    EXPECT_EQ(names_in(comm), (std::vector{Rank{0}, Rank{1}, Rank{2}, Rank{3}}));
  });
}

TEST(Named, AMessageOfAnotherSizeNamesRanksOfTheWhole) {
  run_loopback(4, [](Communicator& comm) {
    const auto group = odd_or_even(comm);
    group->set_deadline(200ms);
    std::vector<std::byte> bytes(8);
    const Rank other{1 - group->rank().value};
    const std::vector<Outgoing> out{{other, bytes}};
    const std::vector<Incoming> in{{other, std::span(bytes).first(3)}};
    const bool sends = group->rank().value == 1;
    try {
      group->exchange(sends ? out : std::vector<Outgoing>{}, sends ? std::vector<Incoming>{} : in,
                      "here");
    } catch (const SizeMismatch& error) {
      EXPECT_EQ(error.message().receiver, comm.rank());
      EXPECT_EQ(error.message().sender, Rank{comm.rank().value + 2});
      EXPECT_EQ(error.message().sent_bytes, 8u);
      return;
    } catch (const Timeout&) {  // the sender, whose receiver has given up
    }
    EXPECT_TRUE(sends);
  });
}

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
  void set_deadline(std::chrono::milliseconds deadline) override { inner->set_deadline(deadline); }
  std::chrono::milliseconds deadline() const override { return inner->deadline(); }
  std::uint64_t sent_bytes() const override { return inner->sent_bytes(); }
  std::unique_ptr<Communicator> inner;
};

TEST(Named, ALostPeerIsNamedByItsRankInTheWhole) {
  run_loopback(4, [](Communicator& comm) {
    Lost whole(comm.split(0, comm.rank().value));
    const auto group = odd_or_even(whole);
    if (comm.rank().value != 0) return;
    try {
      barrier(*group, "lose");
      ADD_FAILURE() << "nobody was lost";
    } catch (const PeerLost& error) {
      EXPECT_STREQ(error.what(), "rank 0 lost rank 2 in lose: it went");
    }
  });
}

}  // namespace
}  // namespace kvmesh
