#include "comm/common/subset.hpp"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <span>

#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

constexpr int kWhole = 4;

/// Ranks 3 and 1 of four exchange as ranks 0 and 1, while the others do nothing.
void with_subset(const std::function<void(Subset&)>& body) {
  run_loopback(
      kWhole,
      [&](Communicator& whole) {
        if (whole.rank().value % 2 == 0) return;
        Subset subset(whole, {Rank{3}, Rank{1}});
        EXPECT_EQ(subset.size(), 2);
        EXPECT_EQ(subset.rank(), (Rank{whole.rank().value == 3 ? 0 : 1}));
        body(subset);
      },
      kTestDeadline);
}

// Several times: what an exchange leaves must not be sent by the next one.
TEST(Subset, ExchangesAmongItsMembersByTheirPlace) {
  with_subset([](Subset& subset) {
    const int me = subset.rank().value;
    for (int round = 0; round < 3; ++round) {
      const std::array<int, 2> mine{10 * round + me, -1};
      std::array<int, 2> own{}, theirs{};
      const auto bytes = std::as_bytes(std::span(mine));
      const std::array<Outgoing, 2> outgoing{{{Rank{me}, bytes}, {Rank{1 - me}, bytes}}};
      const std::array<Incoming, 2> incoming{
          {{Rank{me}, std::as_writable_bytes(std::span(own))},
           {Rank{1 - me}, std::as_writable_bytes(std::span(theirs))}}};
      subset.exchange(outgoing, incoming, "test");
      EXPECT_EQ(own[0], 10 * round + me);
      EXPECT_EQ(theirs[0], 10 * round + 1 - me);
      EXPECT_EQ(subset.sent_bytes(), (round + 1) * sizeof mine) << "to the other one alone";
    }
  });
}

TEST(Subset, RefusesRanksThatItDoesNotHave) {
  with_subset([](Subset& subset) {
    const std::array<Outgoing, 1> outgoing{{{Rank{2}, {}}}};
    const std::array<Incoming, 1> incoming{{{Rank{3}, {}}}};
    EXPECT_THROW(subset.exchange(outgoing, {}, "test"), InvalidArgument);
    EXPECT_THROW(subset.exchange({}, incoming, "test"), InvalidArgument);
    EXPECT_THROW(subset.split(0, 0), Unsupported);
  });
  run_loopback(2, [](Communicator& whole) {
    if (whole.rank().value == 0) {
      EXPECT_THROW(Subset(whole, {Rank{1}}), InvalidArgument);
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
