// Compiling at run time, without a GPU.
#include "kernels/jit/compiler.hpp"

#include <gtest/gtest.h>

#include <array>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include "tests/kernels/jit/programs.hpp"

namespace kvmesh::jit {
namespace {

using test::sample_program;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A program of one text.
Program program_of(const std::array<SourceFile, 1>& file) {
  return {.files = file, .source = std::string(file[0].name), .architecture = "sm_90a"};
}

TEST(Embedding, TextsAreThoseOfTheFiles) {
  ASSERT_FALSE(jit_test_files().empty());
  for (const SourceFile& file : jit_test_files()) {
    std::ifstream stream(std::string(KVMESH_SOURCE_DIR) + "/" + std::string(file.name));
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    EXPECT_EQ(file.text, text) << file.name;
    EXPECT_FALSE(text.empty()) << file.name;
  }
}

TEST(Compiler, ReturnsMachineCodeAndResources) {
  const Cubin cubin = compile(sample_program());
  ASSERT_GT(cubin.bytes.size(), 4u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(cubin.bytes.data()) + 1, 3), "ELF");
  bool is_there = false;
  for (const KernelResources& kernel : cubin.resources()) {
    if (kernel.name != "scale_shift") continue;
    is_there = true;
    EXPECT_TRUE(kernel.stays_in_registers()) << to_string(kernel);
    EXPECT_GT(kernel.registers, 0);
    EXPECT_EQ(kernel.shared_bytes, 128 * 4);
  }
  EXPECT_TRUE(is_there) << cubin.log;
}

TEST(Compiler, SeesLocalMemory) {
  bool is_there = false;
  for (const KernelResources& kernel : compile(sample_program()).resources()) {
    if (kernel.name != "through_local_memory") continue;
    is_there = true;
    EXPECT_FALSE(kernel.stays_in_registers());
    EXPECT_EQ(kernel.stack_bytes, 4000);
  }
  EXPECT_TRUE(is_there);
}

TEST(Compiler, SeesSpills) {
  // More values at once than the registers that it is allowed.
  const std::array<SourceFile, 1> file{SourceFile{"spill.cuh", R"(
extern "C" __global__ void spill(float* x) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = v[63 - i] * v[i];
})"}};
  Program program = program_of(file);
  EXPECT_TRUE(compile(program).resources().at(0).stays_in_registers());
  program.options = {"--maxrregcount=24"};
  const Cubin cubin = compile(program);
  EXPECT_GT(cubin.resources().at(0).spill_store_bytes, 0) << cubin.log;
  EXPECT_GT(cubin.resources().at(0).spill_load_bytes, 0) << cubin.log;
}

TEST(Compiler, AnErrorCarriesTheLog) {
  const std::array<SourceFile, 1> file{
      SourceFile{"kernels/wrong.cuh", "\nextern \"C\" __global__ void f() { nobody_knows(); }\n"}};
  try {
    compile(program_of(file));
    FAIL() << "it compiled";
  } catch (const CompileError& error) {
    EXPECT_TRUE(contains(error.log(), "nobody_knows")) << error.log();
    EXPECT_TRUE(contains(error.log(), "kernels/wrong.cuh(2)")) << error.log();
    EXPECT_TRUE(contains(error.what(), error.log()));
  }
}

TEST(Compiler, ErrorInAModNamesTheMod) {
  Program program = sample_program();
  program.mods = "\nint wrong = \"text\";";
  try {
    compile(program);
    FAIL() << "it compiled";
  } catch (const CompileError& error) {
    EXPECT_TRUE(contains(error.log(), "mods(2)")) << error.log();
  }
}

TEST(Compiler, RejectsMissingSource) {
  Program program = sample_program();
  program.architecture = "sm_1";
  EXPECT_THROW(compile(program), CompileError);
  program = sample_program();
  program.source = "tests/kernels/jit/none.cuh";
  EXPECT_THROW(compile(program), InvalidArgument);
}

TEST(Compiler, ConstantsHaveTheirExactValuesAndTypes) {
  using Int = std::numeric_limits<int>;
  using Float = std::numeric_limits<float>;
  const std::array<SourceFile, 1> file{SourceFile{"constants.cuh", R"(
namespace kvmesh {
template <class A, class B> constexpr bool kSame = false;
template <class A> constexpr bool kSame<A, A> = true;
static_assert(kSame<decltype(kPages), const int> && kPages == 16);
static_assert(kLowest == -2147483647 - 1 && kHighest == 2147483647);
static_assert(kSame<decltype(kYes), const bool> && kYes && !kNo);
static_assert(kSame<decltype(kThird), const float> && kThird == 1.0f / 3.0f);
static_assert(kTiny == 0x1p-149f && kHuge == 0x1.fffffep127f && kMinus == -2.5f);
static_assert(kSame<decltype(kPool), const Dtype> && kPool == Dtype(2) && kNew == Dtype(0));
}
)"}};
  Program program = program_of(file);
  program.constants.set("kPages", 16).set("kLowest", Int::min()).set("kHighest", Int::max());
  program.constants.set("kYes", true).set("kNo", false);
  program.constants.set("kThird", 1.0f / 3.0f).set("kTiny", Float::denorm_min());
  program.constants.set("kHuge", Float::max()).set("kMinus", -2.5f);
  program.constants.set("kPool", Dtype::kBFloat16).set("kNew", Dtype::kFloat32);
  EXPECT_NO_THROW(compile(program));

  Constants constants;
  EXPECT_THROW(constants.set("not a name", 1), InvalidArgument);
  EXPECT_THROW(constants.set("", 1), InvalidArgument);
  EXPECT_THROW(constants.set("1st", 1), InvalidArgument);
  EXPECT_THROW(constants.set("kInfinite", Float::infinity()), InvalidArgument);
  EXPECT_THROW(constants.set("kNan", Float::quiet_NaN()), InvalidArgument);
  EXPECT_EQ(constants.text(), "");
}

TEST(ProgramKeys, DependOnEverything) {
  const ProgramKey key = key_of(sample_program(), "NVRTC 1");
  EXPECT_EQ(key, key_of(sample_program(), "NVRTC 1"));
  EXPECT_NE(key, key_of(sample_program(), "NVRTC 2"));
  EXPECT_NE(key, key_of(sample_program(3.0f), "NVRTC 1"));
  const auto key_with = [](auto change) {
    Program program = sample_program();
    change(program);
    return key_of(program, "NVRTC 1");
  };
  EXPECT_NE(key, key_with([](Program& p) { p.architecture = "sm_80"; }));
  EXPECT_NE(key, key_with([](Program& p) { p.mods = "// other"; }));
  EXPECT_NE(key, key_with([](Program& p) { p.options = {"-lineinfo"}; }));
  EXPECT_NE(key, key_with([](Program& p) { p.source = test::kEvaluateMods; }));
  std::vector<SourceFile> files(jit_test_files().begin(), jit_test_files().end());
  files.front().text = "// other";
  EXPECT_NE(key, key_with([&](Program& p) { p.files = files; }));
}

}  // namespace
}  // namespace kvmesh::jit
