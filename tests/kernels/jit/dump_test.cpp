// The files about compiled programs, for people to read.
#include "kernels/jit/dump.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <vector>

#include "core/posix/whole_file.hpp"
#include "kernels/jit/cubin_cache.hpp"
#include "kernels/jit/disassemble.hpp"
#include "tests/kernels/jit/cache_support.hpp"
#include "tests/kernels/jit/processes.hpp"
#include "tests/kernels/jit/programs.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::jit {
namespace {

namespace fs = std::filesystem;
using test::in_processes;
using test::sample_program;
using test::TemporaryDirectory;
using test::Variable;
using Origin = CubinCache::Origin;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// The file of the program with this suffix.
fs::path file_of(const TemporaryDirectory& directory, const Program& program, const char* suffix) {
  return directory.path() / ("sample-" + to_string(key_of(program, compiler_version())) + suffix);
}

std::string text_of(const fs::path& file) {
  const auto bytes = read_file(file);
  EXPECT_TRUE(bytes) << file;
  if (!bytes) return {};
  return {reinterpret_cast<const char*>(bytes->data()), bytes->size()};
}

/// No tool of the toolkit is found, unless the test writes one.
class DumpTest : public testing::Test {
 protected:
  void write_tool(const fs::path& folder, const char* name, const std::string& script) {
    fs::create_directories(folder);
    std::ofstream(folder / name) << "#!/bin/sh\n" << script << "\n";
    fs::permissions(folder / name, fs::perms::owner_all);
  }

  const TemporaryDirectory tools_, dump_;
  const Variable folder_{"KVMESH_DUMP", dump_.path().c_str()};
  const Variable path_{"PATH", (tools_.path() / "path").c_str()};
  const Variable home_{"CUDA_HOME", (tools_.path() / "home").c_str()};
  const Program program_ = sample_program(3.25f);
};

TEST_F(DumpTest, ComesFromTheEnvironment) {
  EXPECT_EQ(default_dump_directory(), dump_.path());
  const Variable none("KVMESH_DUMP", nullptr);
  EXPECT_EQ(default_dump_directory(), "");
  const auto found = CubinCache("").get(program_);
  EXPECT_EQ(found.origin, Origin::kCompiler);
  EXPECT_EQ(dump_.files(), 0u);
}

TEST_F(DumpTest, WritesAllFiles) {
  const auto found = CubinCache("").get(program_);
  EXPECT_EQ(text_of(file_of(dump_, program_, ".cu")), translation_unit(program_));
  EXPECT_EQ(read_file(file_of(dump_, program_, ".cubin")), found.cubin->bytes);
  const std::string ptx = text_of(file_of(dump_, program_, ".ptx"));
  EXPECT_TRUE(contains(ptx, ".target sm_90a")) << ptx;
  EXPECT_TRUE(contains(ptx, "scale_shift"));
  const std::string text = text_of(file_of(dump_, program_, ".txt"));
  ASSERT_EQ(found.cubin->resources().size(), 2u);
  for (const KernelResources& kernel : found.cubin->resources()) {
    EXPECT_TRUE(contains(text, to_string(kernel))) << text;
  }
  EXPECT_TRUE(contains(text, found.cubin->log));
  EXPECT_TRUE(contains(text, "--gpu-architecture=sm_90a"));
  EXPECT_TRUE(contains(text, compiler_version()));
  EXPECT_EQ(dump_.files(), 4u) << "no instructions, no temporary file";
}

TEST_F(DumpTest, DumpsCachedPrograms) {
  const TemporaryDirectory cache;
  {
    const Variable none("KVMESH_DUMP", nullptr);
    CubinCache(cache.path()).get(program_);
  }
  const auto found = CubinCache(cache.path()).get(program_);
  ASSERT_EQ(found.origin, Origin::kDisk);
  EXPECT_EQ(read_file(file_of(dump_, program_, ".cubin")), found.cubin->bytes);
  EXPECT_TRUE(fs::exists(file_of(dump_, program_, ".txt")));
}

TEST_F(DumpTest, MakesTheFolderAndSeparatesPrograms) {
  const fs::path folder = dump_.path() / "a" / "b";
  const Variable deeper("KVMESH_DUMP", folder.c_str());
  CubinCache cache("");
  cache.get(program_);
  cache.get(sample_program(4.0f));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 8);
}

TEST_F(DumpTest, UsesTheFirstToolFound) {
  const fs::path sass = file_of(dump_, program_, ".sass");
  write_tool(tools_.path() / "home" / "bin", "cuobjdump", "echo cuobjdump $1 $2");
  CubinCache("").get(program_);
  EXPECT_EQ(text_of(sass), "cuobjdump -sass " + file_of(dump_, program_, ".cubin").string() + "\n");
  write_tool(tools_.path() / "home" / "bin", "nvdisasm", "echo home $1");
  CubinCache("").get(program_);
  EXPECT_EQ(text_of(sass), "home -c\n");
  write_tool(tools_.path() / "path", "nvdisasm", "echo path $1; echo noise >&2");
  CubinCache("").get(program_);
  EXPECT_EQ(text_of(sass), "path -c\n");
  EXPECT_TRUE(contains(text_of(file_of(dump_, program_, ".txt")), sass.filename().string()));
}

TEST_F(DumpTest, DescribesHowToDisassemble) {
  const std::string how = "nvdisasm -c " + file_of(dump_, program_, ".cubin").filename().string();
  CubinCache("").get(program_);
  EXPECT_TRUE(contains(text_of(file_of(dump_, program_, ".txt")), how));
  write_tool(tools_.path() / "path", "nvdisasm", "echo half of it; exit 1");
  fs::remove(file_of(dump_, program_, ".txt"));
  CubinCache("").get(program_);
  EXPECT_TRUE(contains(text_of(file_of(dump_, program_, ".txt")), how));
  EXPECT_FALSE(fs::exists(file_of(dump_, program_, ".sass")));
}

TEST_F(DumpTest, TriesTheSecondToolIfTheFirstFails) {
  write_tool(tools_.path() / "path", "nvdisasm", "echo half of it; exit 1");
  write_tool(tools_.path() / "home" / "bin", "cuobjdump", "echo all");
  EXPECT_EQ(disassemble("any.cubin"), "all\n");
}

TEST_F(DumpTest, WaitForAToolIsBounded) {
  write_tool(tools_.path() / "path", "nvdisasm", "exec /bin/sleep 30");
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(disassemble("any.cubin", std::chrono::milliseconds(50)));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST_F(DumpTest, UnusableFolderCostsOneLine) {
  const fs::path file = dump_.path() / "a file";
  std::ofstream(file) << "not a folder";
  for (const fs::path& unusable : {file / "dump", fs::path("/proc/none"), file}) {
    const Variable wrong("KVMESH_DUMP", unusable.c_str());
    testing::internal::CaptureStderr();
    CubinCache cache("");
    EXPECT_EQ(cache.get(program_).origin, Origin::kCompiler);
    EXPECT_EQ(cache.get(sample_program(4.0f)).origin, Origin::kCompiler);
    const std::string said = testing::internal::GetCapturedStderr();
    EXPECT_TRUE(contains(said, "'" + unusable.string() + "'")) << said;
    EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
  }
}

TEST_F(DumpTest, ProcessesMayWriteTheSame) {
  const std::vector<std::byte> code = compile(program_).bytes;
  EXPECT_TRUE(in_processes(4, [&](int) {
    for (int i = 0; i < 5; ++i) {
      CubinCache("").get(program_);
      if (read_file(file_of(dump_, program_, ".cubin")) != code) return false;
      if (text_of(file_of(dump_, program_, ".cu")) != translation_unit(program_)) return false;
    }
    return true;
  }));
  EXPECT_EQ(dump_.files(), 4u);
}

}  // namespace
}  // namespace kvmesh::jit
