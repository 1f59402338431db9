// Reads the compiler's log, also lines that this machine's compiler does not print.
#include "kernels/jit/resources.hpp"

#include <gtest/gtest.h>

namespace kvmesh::jit {
namespace {

TEST(Resources, AreReadFromTheLog) {
  const auto kernels = read_resources(
      "kernels/a.cuh(3): warning: variable 'Compiling' was declared\n"
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function 'first' for 'sm_90a'\n"
      "ptxas info    : Function properties for first\n"
      "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
      "ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem\n"
      "ptxas info    : Compiling entry function 'second' for 'sm_90a'\n"
      "ptxas info    : Function properties for second\n"
      "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n"
      "ptxas info    : Function properties for called\n"
      "    48 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n"
      "ptxas info    : Used 32 registers, used 0 barriers, 56 bytes cumulative stack size");
  ASSERT_EQ(kernels.size(), 2u);
  EXPECT_EQ(kernels[0].name, "first");
  EXPECT_EQ(kernels[0].registers, 255);
  EXPECT_EQ(kernels[0].shared_bytes, 1024);
  EXPECT_TRUE(kernels[0].stays_in_registers());
  EXPECT_EQ(kernels[1].name, "second");
  EXPECT_EQ(kernels[1].registers, 32);
  EXPECT_EQ(kernels[1].shared_bytes, 0);
  EXPECT_EQ(kernels[1].stack_bytes, 56);
  EXPECT_EQ(kernels[1].spill_store_bytes, 16);
  EXPECT_EQ(kernels[1].spill_load_bytes, 20);
  EXPECT_FALSE(kernels[1].stays_in_registers());
}

TEST(Resources, AreEmptyForAnEmptyLog) {
  EXPECT_TRUE(read_resources("").empty());
  EXPECT_TRUE(read_resources("\n\nptxas info : Used 3 registers\n").empty());
}

}  // namespace
}  // namespace kvmesh::jit
