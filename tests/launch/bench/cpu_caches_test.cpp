#include "launch/bench/cpu_caches.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace kvmesh::bench {
namespace {

// A folder like the kernel's, removed with this object.
class Caches : public testing::Test {
 protected:
  Caches()
      : folder_(std::filesystem::temp_directory_path() /
                ("kvmesh-caches-" + std::to_string(::getpid()))) {}
  ~Caches() override { std::filesystem::remove_all(folder_); }

  void add(int index, const std::string& level, const std::string& size) {
    const auto cache = folder_ / ("index" + std::to_string(index));
    std::filesystem::create_directories(cache);
    std::ofstream(cache / "level") << level << '\n';
    std::ofstream(cache / "size") << size << '\n';
  }

  std::filesystem::path folder_;
};

TEST_F(Caches, ReadsTheLastLevelFromTheKernel) {
  add(0, "1", "32K");
  add(1, "1", "32K");
  add(2, "2", "1024K");
  EXPECT_EQ(last_level_cache_bytes(folder_), 1 << 20);
  add(3, "3", "32768K");
  EXPECT_EQ(last_level_cache_bytes(folder_), 32 << 20);
  add(4, "4", "128M");
  EXPECT_EQ(last_level_cache_bytes(folder_), 128 << 20);
}

TEST_F(Caches, FallsBackWithoutTheKernelsFiles) {
  EXPECT_GT(last_level_cache_bytes(folder_), 0);
  add(0, "nonsense", "nonsense");
  EXPECT_GT(last_level_cache_bytes(folder_), 0);
}

}  // namespace
}  // namespace kvmesh::bench
