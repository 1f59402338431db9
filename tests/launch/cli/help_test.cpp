#include "launch/cli/help.hpp"

#include <gtest/gtest.h>

namespace kvmesh::launch {
namespace {

TEST(Help, BreaksTextsAtSpaces) {
  EXPECT_EQ(broken_into_lines("", 10), "");
  EXPECT_EQ(broken_into_lines("ten digits", 10), "ten digits");
  EXPECT_EQ(broken_into_lines("ten digits and", 10), "ten digits\nand");
  EXPECT_EQ(broken_into_lines("one two three", 6), "one\ntwo\nthree");
}

TEST(Help, LeavesLongWordsWhole) {
  EXPECT_EQ(broken_into_lines("per_token_and_head", 6), "per_token_and_head");
  EXPECT_EQ(broken_into_lines("per_token_and_head is it", 6), "per_token_and_head\nis it");
}

}  // namespace
}  // namespace kvmesh::launch
