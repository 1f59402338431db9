// The cache of compiled kernels, alone and shared by threads and processes.
#include "kernels/jit/cubin_cache.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "tests/kernels/jit/cache_support.hpp"
#include "tests/kernels/jit/programs.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using test::made_up_cubin;
using test::same;
using test::sample_program;
using test::TemporaryDirectory;
using Origin = CubinCache::Origin;

/// Sets an environment variable, or removes it, for as long as it lives.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~Variable() { set(before_ ? before_->c_str() : nullptr); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const char* value) { value ? ::setenv(name_, value, 1) : ::unsetenv(name_); }

  const char* name_;
  std::optional<std::string> before_;
};

/// Runs `body` in so many processes at once. True if it was in all of them.
template <class Body>
bool in_processes(int count, Body body) {
  std::vector<pid_t> children;
  for (int i = 0; i < count; ++i) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(body(i) ? 0 : 1);
    children.push_back(child);
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    all = all && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  return all;
}

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

  const auto start = std::chrono::steady_clock::now();
  CubinCache later(directory.path());
  const auto read = later.get(sample_program());
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(read.origin, Origin::kDisk);
  EXPECT_TRUE(same(*read.cubin, *compiled.cubin));
  EXPECT_EQ(read.cubin->resources().size(), 2u);
  RecordProperty("cached_start_ms", std::to_string(took.count()));
  std::printf("a cached start took %.3f ms\n", took.count());
}

TEST(CubinCache, ADamagedFileIsCompiledAgain) {
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

TEST(CubinCache, KeepsNoFailure) {
  const TemporaryDirectory directory;
  CubinCache cache(directory.path());
  Program program = sample_program();
  program.mods = "int wrong = nobody_knows;";
  EXPECT_THROW(cache.get(program), CompileError);
  EXPECT_THROW(cache.get(program), CompileError);
  EXPECT_EQ(directory.files(), 0u);
}

TEST(CubinCache, ThreadsThatWantTheSameCompileItOnce) {
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

TEST(CubinCache, ProcessesShareADirectory) {
  const TemporaryDirectory directory;
  constexpr ProgramKey kKey{{3, 4}};
  const Cubin cubin = made_up_cubin(7, 400000);
  // All write the same file again and again, and at every moment read it whole or not at all.
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
      ::alarm(20);  // ends it where this process could not
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

TEST(CubinCache, ProcessesThatStartTogetherAllGetTheKernel) {
  const TemporaryDirectory directory;
  EXPECT_TRUE(in_processes(3, [&](int) {
    CubinCache cache(directory.path());
    return !cache.get(sample_program()).cubin->bytes.empty();
  }));
  EXPECT_EQ(directory.files(), 1u);
  EXPECT_EQ(CubinCache(directory.path()).get(sample_program()).origin, Origin::kDisk);
}

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
}  // namespace kvmesh::jit
