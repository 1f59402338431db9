#include "core/pod/shares.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

TEST(Shares, OwnerOfAnItemHasItInItsShare) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (int count = 0; count <= 40; ++count) {
      EXPECT_EQ(share_begin(count, 0, ranks), 0);
      EXPECT_EQ(share_begin(count, ranks, ranks), count);
      for (int rank = 0; rank < ranks; ++rank) {
        const int begin = share_begin(count, rank, ranks);
        const int end = share_begin(count, rank + 1, ranks);
        EXPECT_EQ(end - begin, count / ranks + (rank < count % ranks ? 1 : 0));
        for (int item = begin; item < end; ++item) {
          EXPECT_EQ(share_owner(count, item, ranks), rank);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh
