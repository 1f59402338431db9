#include "core/bulk_copy.hpp"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace kvmesh {
namespace {

TEST(BulkCopy, WritesTheBytesAndNoOthers) {
  std::mt19937 random(5);
  std::vector<std::uint8_t> from(1000), to(1000), expected(1000);
  for (std::uint8_t& byte : from) byte = static_cast<std::uint8_t>(random());
  for (const std::size_t all : {std::size_t{0}, BulkCopy::kCachedBytes + 1}) {
    for (int round = 0; round < 3000; ++round) {
      const std::size_t size = random() % (round % 2 ? 100 : 700);
      const std::size_t read = random() % 100, written = 100 + random() % 100;
      std::ranges::fill(to, std::uint8_t{0xEE});
      std::ranges::fill(expected, std::uint8_t{0xEE});
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(read), size,
                  expected.begin() + static_cast<std::ptrdiff_t>(written));
      {
        const BulkCopy copy(all);
        // A piece that would go past the end of all memory that there is may be the next, too.
        copy(to.data() + written, from.data() + read, size,
             round % 3 == 0 ? nullptr : from.data() + from.size() - round % 3);
      }
      ASSERT_EQ(to, expected) << size << " bytes from " << read << " to " << written;
    }
  }
}

}  // namespace
}  // namespace kvmesh
