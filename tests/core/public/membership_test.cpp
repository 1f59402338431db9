#include "kvmesh/membership.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(Membership, StartsWithEqualNumbers) {
  const Membership members(3);
  EXPECT_EQ(members.epoch(), 0u);
  EXPECT_EQ(members.size(), 3);
  EXPECT_EQ(members.holder(PageRank{2}), Rank{2});
  EXPECT_EQ(members.page_rank(Rank{1}), PageRank{1});
}

TEST(Membership, IsReadBothWays) {
  const Membership members(7, {Rank{2}, Rank{0}, Rank{1}});
  EXPECT_EQ(members.epoch(), 7u);
  EXPECT_EQ(members.holder(PageRank{0}), Rank{2});
  EXPECT_EQ(members.page_rank(Rank{2}), PageRank{0});
  EXPECT_EQ(members.page_rank(Rank{0}), PageRank{1});
  EXPECT_NE(members, Membership(3));
}

TEST(Membership, RejectsRanksThatAreMissingOrRepeated) {
  EXPECT_THROW(Membership(0), InvalidArgument);
  EXPECT_THROW(Membership(1, {}), InvalidArgument);
  EXPECT_THROW(Membership(1, {Rank{0}, Rank{0}}), InvalidArgument);
  EXPECT_THROW(Membership(1, {Rank{0}, Rank{2}}), InvalidArgument);
  EXPECT_THROW(Membership(1, {Rank{-1}, Rank{0}}), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh
