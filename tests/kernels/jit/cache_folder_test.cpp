// The folder of the cache: the files that stay in it, and the lock files.
#include "kernels/jit/cache_folder.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <optional>

#include "kernels/jit/cubin_cache.hpp"
#include "kernels/jit/cubin_file.hpp"
#include "kvmesh/error.hpp"
#include "tests/kernels/jit/cache_support.hpp"
#include "tests/kernels/jit/processes.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using test::in_processes;
using test::made_up_cubin;
using test::same;
using test::Sleeper;
using test::TemporaryDirectory;
using test::Variable;

TEST(CacheBytes, ComeFromTheEnvironment) {
  const Variable none("KVMESH_CACHE_BYTES", nullptr);
  EXPECT_EQ(default_cache_bytes(), std::uintmax_t{512} << 20);
  {
    const Variable given("KVMESH_CACHE_BYTES", "70000000000");
    EXPECT_EQ(default_cache_bytes(), 70'000'000'000u);
  }
  for (const char* wrong : {"1GB", "-1", " 5", "all", "99999999999999999999999"}) {
    const Variable given("KVMESH_CACHE_BYTES", wrong);
    EXPECT_THROW(default_cache_bytes(), InvalidArgument) << wrong;
  }
}

/// A file of the cache with `bytes` bytes of code, as if it had last been used some time ago.
ProgramKey stored(const CubinCache& cache, std::uint64_t number, std::chrono::minutes ago) {
  const ProgramKey key{{number, number}};
  EXPECT_TRUE(cache.store(key, made_up_cubin(number, 1000)));
  fs::last_write_time(cache.path_of(key), fs::file_time_type::clock::now() - ago);
  return key;
}

TEST(Tidy, RemovesTheLeastRecentlyUsedFirst) {
  const TemporaryDirectory directory;
  const CubinCache cache(directory.path(), {.bytes = 3500});  // room for three
  const ProgramKey first = stored(cache, 1, 30min), second = stored(cache, 2, 20min),
                   third = stored(cache, 3, 10min);
  ASSERT_EQ(directory.files(), 3u);
  EXPECT_TRUE(cache.load(first)) << "it counts as used from here on";
  const ProgramKey fourth = stored(cache, 4, 0min);
  EXPECT_EQ(directory.files(), 3u);
  EXPECT_TRUE(cache.load(first));
  EXPECT_FALSE(cache.load(second));
  EXPECT_TRUE(cache.load(third));
  EXPECT_TRUE(cache.load(fourth));
}

TEST(Tidy, RemovesAllIfNothingFits) {
  const TemporaryDirectory directory;
  const CubinCache cache(directory.path(), {.bytes = 10});
  cache.store({{1, 1}}, made_up_cubin(1, 1000));
  EXPECT_EQ(directory.files(), 0u);
}

TEST(Tidy, LeavesForeignFiles) {
  const TemporaryDirectory directory;
  const auto old = fs::file_time_type::clock::now() - 48h;
  for (const char* name : {"notes.txt", "model.gguf", "a.tmp", "b.lock", "c.cubin"}) {
    std::ofstream(directory.path() / name) << "some bytes";
    fs::last_write_time(directory.path() / name, old);
  }
  fs::create_directory(directory.path() / "folder");
  tidy(directory.path(), 5);
  EXPECT_TRUE(fs::exists(directory.path() / "notes.txt"));
  EXPECT_TRUE(fs::exists(directory.path() / "model.gguf"));
  EXPECT_TRUE(fs::exists(directory.path() / "folder"));
  EXPECT_EQ(directory.files(), 3u);
  tidy(directory.path() / "none", 5);
}

TEST(Tidy, ProcessesMayTidyAtOnce) {
  const TemporaryDirectory directory;
  constexpr std::uintmax_t kBytes = 100'000;
  EXPECT_TRUE(in_processes(4, [&](int process) {
    const CubinCache cache(directory.path(), {.bytes = kBytes});
    for (std::uint64_t i = 0; i < 60; ++i) {
      const std::uint64_t number = (i * 7 + static_cast<std::uint64_t>(process)) % 40;
      const Cubin cubin = made_up_cubin(number, 10'000);
      if (!cache.store({{number, 0}}, cubin)) return false;
      const std::optional<Cubin> read = cache.load({{number, 0}});
      if (read && !same(*read, cubin)) return false;
    }
    return true;
  }));
  std::uintmax_t total = 0;
  for (const auto& entry : fs::directory_iterator(directory.path())) total += entry.file_size();
  EXPECT_LE(total, kBytes);
  EXPECT_GT(total, 0u);
}

TEST(FileLock, HasOneHolderAndEndsWithIt) {
  const TemporaryDirectory directory;
  const fs::path path = directory.path() / "a.lock";
  {
    const auto mine = FileLock::acquire(path, 0ms);
    ASSERT_TRUE(mine);
    EXPECT_FALSE(FileLock::acquire(path, 5ms));
  }
  EXPECT_EQ(directory.files(), 0u);
  Sleeper other([&] { return FileLock::acquire(path, 0ms); });
  ASSERT_TRUE(other.is_ready());
  EXPECT_FALSE(FileLock::acquire(path, 20ms));
  other.kill();
  EXPECT_TRUE(FileLock::acquire(path, 0ms));
  EXPECT_FALSE(FileLock::acquire(directory.path() / "none" / "a.lock", 0ms));
}

}  // namespace
}  // namespace kvmesh::jit
