#include <gtest/gtest.h>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(Printable, KeepsTextAndEscapesTheRest) {
  EXPECT_EQ(printable("rank 3: hällo \u20ac \U0001F600"), "rank 3: hällo \u20ac \U0001F600");
  EXPECT_EQ(printable("\x1b[2J\r\n\t\x7f"), "\\x1b[2J\\x0d\\x0a\\x09\\x7f");
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\xc2\\x9b31m")
      << "a control character of two bytes";
}

TEST(Printable, EscapesInvalidUtf8) {
  EXPECT_EQ(printable("\xe4"), "\\xe4");           // Latin-1, and the end
  EXPECT_EQ(printable("\xe2\x82"), "\\xe2\\x82");  // cut
  EXPECT_EQ(printable("\xc1\xa1"), "\\xc1\\xa1");  // longer than needed
  EXPECT_EQ(printable("\xe0\x81\xa1"), "\\xe0\\x81\\xa1");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // half of a pair
  EXPECT_EQ(printable("\xf5\x80\x80\x80"), "\\xf5\\x80\\x80\\x80");
}

}  // namespace
}  // namespace kvmesh
