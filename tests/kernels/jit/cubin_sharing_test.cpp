// The cache of compiled kernels, shared by processes that start and are killed at any time.
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <optional>
#include <string>
#include <thread>

#include "kernels/jit/cubin_cache.hpp"
#include "kernels/jit/cubin_file.hpp"
#include "tests/kernels/jit/cache_support.hpp"
#include "tests/kernels/jit/processes.hpp"
#include "tests/kernels/jit/programs.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using test::in_processes;
using test::made_up_cubin;
using test::same;
using test::sample_program;
using test::Sleeper;
using test::TemporaryDirectory;
using Origin = CubinCache::Origin;

TEST(CubinCache, ProcessesShareADirectory) {
  const TemporaryDirectory directory;
  constexpr ProgramKey kKey{{3, 4}};
  const Cubin cubin = made_up_cubin(7, 400000);
  // All processes write the same file again and again, and every read sees it whole or not at all.
  EXPECT_TRUE(in_processes(4, [&](int) {
    const CubinCache cache(directory.path());
    for (int i = 0; i < 20; ++i) {
      if (!cache.store(kKey, cubin)) return false;
      const std::optional<Cubin> read = cache.load(kKey);
      if (!read || !same(*read, cubin)) return false;
    }
    return true;
  }));
  EXPECT_EQ(directory.files(), 1u);
}

TEST(CubinCache, ProcessesMayBeKilledAtAnyMoment) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  const TemporaryDirectory directory;
  const CubinCache cache(directory.path());
  constexpr ProgramKey kKey{{5, 6}};
  const Cubin cubin = made_up_cubin(8, 2000000);
  for (int round = 0; round < 30; ++round) {
    fs::remove(cache.path_of(kKey));
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(20);  // ends the child if this process cannot
      while (true) cache.store(kKey, cubin);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random.integer(0, 30000)));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const std::optional<Cubin> read = cache.load(kKey);
    EXPECT_EQ(fs::exists(cache.path_of(kKey)), read.has_value()) << "a file that is not whole";
    EXPECT_TRUE(!read || same(*read, cubin));
  }
  EXPECT_TRUE(cache.store(kKey, cubin));
}

TEST(CubinCache, ProcessesThatStartTogetherCompileOnce) {
  const TemporaryDirectory directory, compilers;
  EXPECT_TRUE(in_processes(4, [&](int i) {
    CubinCache cache(directory.path());
    const auto found = cache.get(sample_program());
    if (found.origin == Origin::kCompiler) {
      std::ofstream(compilers.path() / std::to_string(i)) << "me";
    }
    return !found.cubin->bytes.empty();
  }));
  EXPECT_EQ(compilers.files(), 1u);
  EXPECT_EQ(directory.files(), 1u) << "beside the cubin nothing stays";
  EXPECT_EQ(CubinCache(directory.path()).get(sample_program()).origin, Origin::kDisk);
}

TEST(CubinCache, KilledCompilerBlocksNoProcess) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  const TemporaryDirectory directory;
  for (int round = 0; round < 5; ++round) {
    const Program program = sample_program(static_cast<float>(round));
    const pid_t child = ::fork();
    if (child == 0) {
      ::alarm(20);
      CubinCache(directory.path()).get(program);
      ::_exit(0);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(random.integer(0, 100)));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(CubinCache(directory.path()).get(program).cubin->bytes.empty());
    EXPECT_LT(std::chrono::steady_clock::now() - start, CacheLimits{}.wait / 2);
    EXPECT_EQ(CubinCache(directory.path()).get(program).origin, Origin::kDisk);
  }
}

TEST(CubinCache, WaitForAnotherProcessIsBounded) {
  const TemporaryDirectory directory;
  const Program program = sample_program();
  fs::path lock = CubinCache(directory.path()).path_of(key_of(program, compiler_version()));
  lock.replace_extension(kLockSuffix);
  const Sleeper holder([&] { return FileLock::acquire(lock, std::chrono::seconds(0)); });
  ASSERT_TRUE(holder.is_ready());
  CubinCache cache(directory.path(), {.wait = std::chrono::milliseconds(50)});
  EXPECT_EQ(cache.get(program).origin, Origin::kCompiler);
  EXPECT_EQ(CubinCache(directory.path()).get(program).origin, Origin::kDisk);
}

}  // namespace
}  // namespace kvmesh::jit
