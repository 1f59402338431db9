#include "core/posix/cache_directory.hpp"

#include <gtest/gtest.h>

#include "tests/support/environment.hpp"

namespace kvmesh {
namespace {

using test::Variable;

TEST(CacheDirectory, ComesFromTheEnvironment) {
  const Variable home("HOME", "/home/someone");
  const Variable own("KVMESH_CACHE_DIR", nullptr);
  const Variable caches("XDG_CACHE_HOME", nullptr);
  EXPECT_EQ(default_cache_directory(), "/home/someone/.cache/kvmesh");
  {
    const Variable given("XDG_CACHE_HOME", "relative");
    EXPECT_EQ(default_cache_directory(), "/home/someone/.cache/kvmesh");
  }
  const Variable given("XDG_CACHE_HOME", "/caches");
  EXPECT_EQ(default_cache_directory(), "/caches/kvmesh");
  {
    const Variable chosen("KVMESH_CACHE_DIR", "/here");
    EXPECT_EQ(default_cache_directory(), "/here");
  }
  const Variable empty("XDG_CACHE_HOME", "");
  const Variable homeless("HOME", nullptr);
  EXPECT_EQ(default_cache_directory(), "");
}

}  // namespace
}  // namespace kvmesh
