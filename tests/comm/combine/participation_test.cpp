#include <gtest/gtest.h>

#include "kvmesh/combine.hpp"

namespace kvmesh {
namespace {

TEST(ShareOf, CoversAllInOrderAndEvenly) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (std::int64_t count = 0; count <= 40; ++count) {
      std::int64_t next = 0;
      for (int r = 0; r < ranks; ++r) {
        const IndexRange share = share_of(count, r, ranks);
        EXPECT_EQ(share.begin, next);
        EXPECT_GE(share.size(), count / ranks);
        EXPECT_LE(share.size(), (count + ranks - 1) / ranks);
        next = share.end;
      }
      EXPECT_EQ(next, count);
    }
  }
}

TEST(ShareOf, GivesTheFirstRanksMore) {
  EXPECT_EQ(share_of(9, 0, 4).size(), 3);
  EXPECT_EQ(share_of(9, 3, 4).begin, 7);
  EXPECT_EQ(share_of(2, 3, 4).size(), 0);
}

TEST(ShareOf, RejectsRanksOutOfRange) {
  EXPECT_THROW(share_of(-1, 0, 1), InvalidArgument);
  EXPECT_THROW(share_of(4, 2, 2), InvalidArgument);
  EXPECT_THROW(share_of(4, -1, 2), InvalidArgument);
  EXPECT_THROW(share_of(4, 0, 0), InvalidArgument);
}

TEST(Participation, StoresEachBit) {
  for (int ranks : {1, 8, 63, 64, 65, 200}) {
    Participation participation(3, ranks);
    for (int r = 0; r < ranks; r += 3) participation.add(1, Rank{r});
    participation.add(2, Rank{ranks - 1});
    for (int r = 0; r < ranks; ++r) {
      EXPECT_FALSE(participation.has(0, Rank{r}));
      EXPECT_EQ(participation.has(1, Rank{r}), r % 3 == 0);
      EXPECT_EQ(participation.has(2, Rank{r}), r == ranks - 1);
    }
  }
}

TEST(Participation, IsPaddedByTokensWithoutRanks) {
  Participation participation(2, 65);
  participation.add(1, Rank{64});
  const Participation padded = participation.padded(4);
  EXPECT_EQ(padded.tokens(), 4);
  EXPECT_TRUE(padded.has(1, Rank{64}));
  for (int r = 0; r < 65; ++r) EXPECT_FALSE(padded.has(2, Rank{r}) || padded.has(3, Rank{r}));
  EXPECT_THROW(static_cast<void>(padded.padded(3)), InvalidArgument);
}

TEST(OrderByOwner, GivesTokensToRanksThatHoldThem) {
  // Shares of three, two and two tokens.
  Participation participation(7, 3);
  const int holders[] = {2, 0, 1, 0, -1, 2, 2};  // the last 2 finds its share full
  for (std::int64_t t = 0; t < 7; ++t) {
    if (holders[t] >= 0) participation.add(t, Rank{holders[t]});
  }
  participation.add(2, Rank{0});  // on two ranks
  EXPECT_EQ(order_for_equal_shares(participation),
            (std::vector<std::int64_t>{1, 2, 3, 4, 6, 0, 5}));
  EXPECT_TRUE(order_for_equal_shares(Participation(0, 3)).empty());
  EXPECT_EQ(order_for_equal_shares(Participation(2, 3)), (std::vector<std::int64_t>{0, 1}));
}

TEST(Participation, OwnerIsTheFirstParticipantUnlessSet) {
  Participation participation(4, 3);
  participation.add(1, Rank{2});
  participation.add(2, Rank{1});
  participation.add(2, Rank{2});
  const auto owners = [](const Participation& of) {
    std::vector<std::int32_t> all;
    for (std::int64_t t = 0; t < of.tokens(); ++t) all.push_back(of.owner(t).value);
    return all;
  };
  EXPECT_EQ(owners(participation), (std::vector<std::int32_t>{0, 2, 1, 0}));
  EXPECT_FALSE(participation.is_of_owners_alone()) << "two ranks have keys of token 2";
  participation.set_owner(2, Rank{2});
  participation.set_owner(3, Rank{1});
  EXPECT_EQ(owners(participation), (std::vector<std::int32_t>{0, 2, 2, 1}));
  EXPECT_EQ(owners(participation.padded(6)), (std::vector<std::int32_t>{0, 2, 2, 1, 0, 0}));

  Participation alone(2, 3);
  alone.add(0, Rank{1});
  EXPECT_TRUE(alone.is_of_owners_alone());
  alone.set_owner(0, Rank{2});
  EXPECT_FALSE(alone.is_of_owners_alone()) << "the owner is not who has the keys";
}

TEST(Participation, RejectsRanksAndTokensOutOfRange) {
  Participation participation(2, 4);
  EXPECT_THROW(participation.add(2, Rank{0}), InvalidArgument);
  EXPECT_THROW(participation.add(-1, Rank{0}), InvalidArgument);
  EXPECT_THROW(participation.add(0, Rank{4}), InvalidArgument);
  EXPECT_THROW(participation.add(0, Rank{-1}), InvalidArgument);
  EXPECT_THROW(participation.set_owner(2, Rank{0}), InvalidArgument);
  EXPECT_THROW(participation.set_owner(0, Rank{4}), InvalidArgument);
  EXPECT_THROW(Participation(-1, 1), InvalidArgument);
  EXPECT_THROW(Participation(1, 0), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh
