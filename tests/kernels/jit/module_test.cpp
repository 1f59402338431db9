// Loading and launching. Tests that need a device are skipped without one.
#include "kernels/jit/module.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/cuda/check.hpp"
#include "core/owners/unique_handle.hpp"
#include "kernels/jit/compiler.hpp"
#include "tests/kernels/jit/evaluate_mods_params.hpp"
#include "tests/kernels/jit/programs.hpp"
#include "tests/kernels/mods/mods_support.hpp"

namespace kvmesh::jit {
namespace {

bool has_device() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

TEST(CudaCheck, NamesOperationErrorAndPlace) {
  EXPECT_NO_THROW(check(cudaSuccess));
  try {
    check(cudaErrorMemoryAllocation, "allocating a pool");
    FAIL() << "no error";
  } catch (const CudaError& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.cuda_code(), cudaErrorMemoryAllocation);
    EXPECT_EQ(error.operation(), "allocating a pool");
    EXPECT_NE(text.find("allocating a pool"), std::string::npos) << text;
    EXPECT_NE(text.find("cudaErrorMemoryAllocation"), std::string::npos) << text;
    EXPECT_NE(text.find("module_test.cpp:"), std::string::npos) << text;
  }
  try {
    check(cudaErrorInvalidValue);
    FAIL() << "no error";
  } catch (const CudaError& error) {
    EXPECT_NE(error.operation().find("TestBody"), std::string::npos) << error.operation();
  }
}

TEST(Module, FailsWithATypedError) {
  const std::vector<std::byte> garbage(100);
  // With a device the runtime may load only at the first use of a kernel.
  EXPECT_THROW(Module{garbage}.kernel("kernel"), CudaError);
  if (has_device()) return;
  EXPECT_THROW(Module{compile(test::sample_program()).bytes}, CudaError);
  EXPECT_THROW(architecture_of(0), CudaError);
}

/// Memory of both host and device.
template <class T>
class SharedArray {
 public:
  explicit SharedArray(std::size_t count) : count_(count) {
    void* data = nullptr;
    check(cudaMallocHost(&data, count * sizeof(T)), "allocating pinned memory");
    data_.reset(static_cast<T*>(data));
    std::memset(data, 0xFF, count * sizeof(T));
  }
  T* data() { return data_.get(); }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  std::size_t size() const { return count_; }

 private:
  UniqueHandle<T*, cudaFreeHost> data_;
  std::size_t count_;
};

class OnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_device()) GTEST_SKIP() << "no GPU here";
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  void TearDown() override {
    if (stream_) static_cast<void>(cudaStreamDestroy(stream_));
  }

  Program on_this_device(Program program) {
    program.architecture = architecture_of(0);
    return program;
  }

  cudaStream_t stream_ = nullptr;
};

struct SampleParams {
  const float* x;
  float* y;
  std::int32_t count;
};

TEST_F(OnDevice, KernelGetsParametersAndConstants) {
  const Module module(compile(on_this_device(test::sample_program(3.0f))).bytes);
  const Kernel kernel = module.kernel("scale_shift");
  constexpr int kCount = 1000;
  SharedArray<float> x(kCount);
  SharedArray<float> y(kCount + 1);
  for (int i = 0; i < kCount; ++i) x[std::size_t(i)] = static_cast<float>(i);
  for (const bool overlaps : {false, true}) {
    kernel.launch({.stream = stream_, .grid = {8}, .block = {128}, .overlaps_previous = overlaps},
                  SampleParams{x.data(), y.data(), kCount});
    check(cudaStreamSynchronize(stream_));
    for (int i = 0; i < kCount; ++i) {
      ASSERT_EQ(y[std::size_t(i)], static_cast<float>(3 * i - 1));
      y[std::size_t(i)] = NAN;
    }
    EXPECT_TRUE(std::isnan(y[kCount]));
  }
}

TEST_F(OnDevice, SharedMemoryPast48KbIsAllowedFirst) {
  const Module module(compile(on_this_device(test::sample_program())).bytes);
  const Kernel kernel = module.kernel("scale_shift");
  const Launch launch{.stream = stream_, .block = {32}, .shared_bytes = 96 * 1024};
  EXPECT_THROW(kernel.launch(launch, SampleParams{nullptr, nullptr, 0}), CudaError);
  kernel.allow_shared_bytes(96 * 1024, 0);
  EXPECT_NO_THROW(kernel.launch(launch, SampleParams{nullptr, nullptr, 0}));
  check(cudaStreamSynchronize(stream_));
  const int few = kernel.blocks_per_multiprocessor(32, 96 * 1024);
  EXPECT_GE(few, 1);
  EXPECT_GT(kernel.blocks_per_multiprocessor(32, 0), few);
  EXPECT_THROW(kernel.allow_shared_bytes(1 << 30, 0), CudaError);
}

TEST_F(OnDevice, NamesAMissingKernel) {
  const Module module(compile(on_this_device(test::sample_program())).bytes);
  try {
    module.kernel("nobody_knows");
    FAIL() << "it was found";
  } catch (const CudaError& error) {
    EXPECT_NE(std::string(error.what()).find("nobody_knows"), std::string::npos);
  }
}

/// Many points, a kernel's results there, and the buffers of two mods on the device.
struct Points {
  explicit Points(std::size_t count)
      : score(count), b(count), h(count), q(count), kv(count), modified(count), visible(count) {}

  SharedArray<float> score;
  SharedArray<std::int32_t> b, h, q, kv;
  SharedArray<float> modified;
  SharedArray<std::uint8_t> visible;
  std::vector<std::unique_ptr<SharedArray<std::byte>>> buffers;

  void fill(test::Random& random) {
    for (std::size_t i = 0; i < score.size(); ++i) {
      const bool wild = random.chance(0.3);
      score[i] = wild ? random.wild_real() : random.real(-8.0f, 8.0f);
      b[i] = random.integer(0, 5);
      h[i] = random.integer(0, 9);
      q[i] = wild ? random.wild_integer() : random.integer(0, 60);
      kv[i] = wild ? random.wild_integer() : random.integer(0, 60);
    }
  }

  EvaluateModsParams params(const std::vector<ModBuffer>& captured) {
    EvaluateModsParams p{.score = score.data(),
                         .b = b.data(),
                         .h = h.data(),
                         .q = q.data(),
                         .kv = kv.data(),
                         .modified = modified.data(),
                         .visible = visible.data(),
                         .count = static_cast<std::int32_t>(score.size()),
                         .buffers = {}};
    for (std::size_t i = 0; i < captured.size(); ++i) {
      const auto bytes =
          static_cast<std::size_t>(captured[i].size) * (captured[i].type == ModType::kBool ? 1 : 4);
      buffers.push_back(std::make_unique<SharedArray<std::byte>>(bytes));
      std::memcpy(buffers.back()->data(), captured[i].data, bytes);
      p.buffers.views[i] = {buffers.back()->data(), static_cast<int>(captured[i].size)};
    }
    return p;
  }
};

TEST_F(OnDevice, ModsComputeTheCpuResult) {
  const std::uint64_t seed = test::seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 40; ++round) {
    const ScoreMod score = test::random_score(random);
    const MaskMod mask = test::random_mask(random, true);
    const Module module(compile(on_this_device(test::mods_program(score, mask))).bytes);
    Points points(2048);
    points.fill(random);
    const CudaMods emitted = emit_cuda(score.graph(), mask.graph());
    module.kernel("evaluate_mods")
        .launch({.stream = stream_, .grid = {16}, .block = {128}}, points.params(emitted.buffers));
    check(cudaStreamSynchronize(stream_));
    for (std::size_t i = 0; i < points.score.size(); ++i) {
      const float s = points.score[i];
      const std::int32_t b = points.b[i], h = points.h[i], q = points.q[i], kv = points.kv[i];
      const float expected = score(s, b, h, q, kv);
      const float given = points.modified[i];
      ASSERT_TRUE(given == expected || (std::isnan(given) && std::isnan(expected)))
          << given << ", expected " << expected << " at score " << s << ", b " << b << ", h " << h
          << ", q " << q << ", kv " << kv << "\n"
          << emitted.text;
      ASSERT_EQ(points.visible[i], mask(b, h, q, kv) ? 1 : 0)
          << "at b " << b << ", h " << h << ", q " << q << ", kv " << kv << "\n"
          << emitted.text;
    }
  }
}

}  // namespace
}  // namespace kvmesh::jit
