#include "core/owners/growing_block.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <new>
#include <utility>

namespace kvmesh {
namespace {

/// A block that counts those that exist.
class Block {
 public:
  Block() = default;
  explicit Block(std::size_t bytes, int* living) : bytes_(bytes), living_(living, &leave) {
    ++*living;
  }
  void* data() const { return living_.get(); }
  std::size_t size_bytes() const { return bytes_; }

 private:
  static void leave(int* living) { --*living; }
  std::size_t bytes_ = 0;
  std::unique_ptr<int, void (*)(int*)> living_{nullptr, &leave};
};

TEST(GrowingBlock, DoublesAndKeepsTheBlocksThatItOutgrew) {
  int living = 0;
  const auto make = [&](std::size_t bytes) { return Block(bytes, &living); };
  {
    GrowingBlock<Block> memory;
    EXPECT_TRUE(memory.reserve(10, make));
    EXPECT_EQ(memory.capacity_bytes(), 10u) << "exactly as asked for the first time";
    EXPECT_FALSE(memory.reserve(10, make));
    EXPECT_TRUE(memory.reserve(11, make));
    EXPECT_EQ(memory.capacity_bytes(), 20u);
    EXPECT_TRUE(memory.reserve(100, make));
    EXPECT_EQ(memory.capacity_bytes(), 100u);
    EXPECT_EQ(memory.size_bytes(), 130u);
    EXPECT_EQ(living, 3);
  }
  EXPECT_EQ(living, 0);
}

TEST(GrowingBlock, FreesTheOldBlockWhereNoDeviceUsesIt) {
  int living = 0;
  const auto make = [&](std::size_t bytes) { return Block(bytes, &living); };
  GrowingBlock<Block> memory;
  memory.reserve(10, make, false);
  memory.reserve(11, make, false);
  EXPECT_EQ(living, 1);
  EXPECT_EQ(memory.size_bytes(), 20u);
}

TEST(GrowingBlock, KeepsItsMemoryIfAllocationFails) {
  int living = 0;
  GrowingBlock<Block> memory;
  memory.reserve(10, [&](std::size_t bytes) { return Block(bytes, &living); });
  const auto fails = [](std::size_t) -> Block { throw std::bad_alloc(); };
  EXPECT_THROW(memory.reserve(11, fails), std::bad_alloc);
  EXPECT_EQ(memory.capacity_bytes(), 10u);
  EXPECT_EQ(memory.size_bytes(), 10u);
}

}  // namespace
}  // namespace kvmesh
