// The cache of compiled kernels in one process.
#include "kernels/jit/cubin_cache.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>
#include <vector>

#include "tests/kernels/jit/cache_support.hpp"
#include "tests/kernels/jit/programs.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using test::made_up_cubin;
using test::same;
using test::sample_program;
using test::TemporaryDirectory;
using Origin = CubinCache::Origin;

TEST(CubinCache, CompilesOnceThenReads) {
  const TemporaryDirectory directory;
  CubinCache cache(directory.path());
  const auto compiled = cache.get(sample_program());
  EXPECT_EQ(compiled.origin, Origin::kCompiler);
  const auto remembered = cache.get(sample_program());
  EXPECT_EQ(remembered.origin, Origin::kMemory);
  EXPECT_EQ(remembered.cubin, compiled.cubin);
  EXPECT_EQ(cache.get(sample_program(3.0f)).origin, Origin::kCompiler);
  EXPECT_EQ(directory.files(), 2u);

  const auto read = CubinCache(directory.path()).get(sample_program());
  EXPECT_EQ(read.origin, Origin::kDisk);
  EXPECT_TRUE(same(*read.cubin, *compiled.cubin));
  EXPECT_EQ(read.cubin->resources().size(), 2u);
}

// The host's part: the key of the sources, finding the file, reading and checking it.
TEST(CubinCache, CachedStartIsFast) {
  const TemporaryDirectory directory;
  CubinCache(directory.path()).get(sample_program());
  std::chrono::duration<double, std::milli> best = std::chrono::hours(1);
  for (int i = 0; i < 5; ++i) {  // other programs may run here too
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(CubinCache(directory.path()).get(sample_program()).origin, Origin::kDisk);
    best = std::min(best, decltype(best)(std::chrono::steady_clock::now() - start));
  }
  RecordProperty("cached_start_ms", std::to_string(best.count()));
  std::printf("a cached start took %.3f ms\n", best.count());
  EXPECT_LT(best.count(), 20.0);
}

TEST(CubinCache, CompilesDamagedFilesAgain) {
  const TemporaryDirectory directory;
  const Program program = sample_program();
  const Cubin good = *CubinCache(directory.path()).get(program).cubin;
  const fs::path path = CubinCache(directory.path()).path_of(key_of(program, compiler_version()));
  ASSERT_TRUE(fs::exists(path));
  fs::resize_file(path, fs::file_size(path) / 2);
  const auto found = CubinCache(directory.path()).get(program);
  EXPECT_EQ(found.origin, Origin::kCompiler);
  EXPECT_EQ(found.cubin->bytes, good.bytes);
  EXPECT_EQ(CubinCache(directory.path()).get(program).origin, Origin::kDisk);
}

TEST(CubinCache, WorksWithoutADisk) {
  const TemporaryDirectory directory;
  const fs::path file = directory.path() / "a file";
  std::ofstream(file) << "not a directory";
  for (const fs::path& unusable : {fs::path(), file / "cache", fs::path("/proc/none")}) {
    CubinCache cache(unusable);
    EXPECT_EQ(cache.get(sample_program()).origin, Origin::kCompiler) << unusable;
    EXPECT_EQ(cache.get(sample_program()).origin, Origin::kMemory) << unusable;
    EXPECT_FALSE(cache.store(ProgramKey{}, made_up_cubin(1, 10))) << unusable;
    EXPECT_FALSE(cache.load(ProgramKey{})) << unusable;
  }
}

TEST(CubinCache, DoesNotCacheFailures) {
  const TemporaryDirectory directory;
  CubinCache cache(directory.path());
  Program program = sample_program();
  program.mods = "int wrong = nobody_knows;";
  EXPECT_THROW(cache.get(program), CompileError);
  EXPECT_THROW(cache.get(program), CompileError);
  EXPECT_EQ(directory.files(), 0u);
}

TEST(CubinCache, ThreadsCompileTheSameProgramOnce) {
  const TemporaryDirectory directory;
  CubinCache cache(directory.path());
  std::array<CubinCache::Found, 6> found;
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < found.size(); ++i) {
    threads.emplace_back([&, i] { found[i] = cache.get(sample_program()); });
  }
  for (std::thread& thread : threads) thread.join();
  int compiled = 0;
  for (const auto& each : found) {
    compiled += each.origin == Origin::kCompiler ? 1 : 0;
    EXPECT_EQ(each.cubin, found[0].cubin);
  }
  EXPECT_EQ(compiled, 1);
}

}  // namespace
}  // namespace kvmesh::jit
