#include "kernels/jit/build_id.hpp"

#include <gtest/gtest.h>
#include <nvrtc.h>

#include <cstdio>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::jit {
namespace {

TEST(BuildIds, DifferBetweenLibraries) {
  const std::string nvrtc = build_id_of(reinterpret_cast<const void*>(&nvrtcVersion));
  EXPECT_GE(nvrtc.size(), 16u);
  EXPECT_EQ(nvrtc.find_first_not_of("0123456789abcdef"), std::string::npos) << nvrtc;
  EXPECT_EQ(nvrtc, build_id_of(reinterpret_cast<const void*>(&nvrtcCompileProgram)));
  EXPECT_NE(nvrtc, build_id_of(reinterpret_cast<const void*>(&std::puts)));
}

TEST(BuildIds, ExistOnlyForCode) {
  const int on_the_stack = 0;
  EXPECT_EQ(build_id_of(&on_the_stack), "");
  EXPECT_EQ(build_id_of(nullptr), "");
}

// Updates of a toolkit give other machine code under the same two numbers.
TEST(BuildIds, ArePartOfTheCompilerVersion) {
  const std::string nvrtc = build_id_of(reinterpret_cast<const void*>(&nvrtcVersion));
  EXPECT_NE(compiler_version().find(nvrtc), std::string::npos) << compiler_version();
}

}  // namespace
}  // namespace kvmesh::jit
