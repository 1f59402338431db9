// Measures the first use of an attention kernel: compiled, or found on disk; and, where there is a
// GPU, loaded. The kernel is that of decode, 32/8 heads of dim 128 in bfloat16, causal, with pages
// of 16 tokens.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <filesystem>

#include "kernels/cuda/attend/family.hpp"
#include "kernels/cuda/common/kernel_store.hpp"
#include "kvmesh/device_memory.hpp"

namespace {

using namespace kvmesh;

/// A folder for cubins, removed with this object.
class Folder {
 public:
  Folder() { std::filesystem::create_directory(path_); }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("kvmesh_jit_bench_" + std::to_string(::getpid()));
};

struct Kernel {
  cuda::AttendVariant variant;
  jit::Program program;
};

Kernel decode_kernel(const std::string& architecture) {
  const AttentionShape shape{
      .q_heads = 32, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .page_size = 16};
  const cuda::AttendVariant variant =
      cuda::choose_attend({.shape = shape, .rows = cuda::row_class_of(4, shape)});
  const CudaMods mods = emit_cuda(ScoreMod().graph(), mods::causal().graph());
  return {variant, cuda::attend_program(variant, mods, architecture)};
}

void compile(benchmark::State& state) {
  const Kernel kernel = decode_kernel("sm_90a");
  for (auto _ : state) benchmark::DoNotOptimize(jit::compile(kernel.program).bytes.data());
}
BENCHMARK(compile)->Unit(benchmark::kMillisecond);

void find_on_disk(benchmark::State& state) {
  const Kernel kernel = decode_kernel("sm_90a");
  const Folder folder;
  jit::CubinCache(folder.path()).get(kernel.program);
  for (auto _ : state) {
    jit::CubinCache cache(folder.path());
    if (cache.get(kernel.program).origin != jit::CubinCache::Origin::kDisk) {
      return state.SkipWithError("not on disk");
    }
  }
}
BENCHMARK(find_on_disk)->Unit(benchmark::kMillisecond);

void load(const std::filesystem::path& folder) {
  cuda::KernelStore store(0, folder);
  const Kernel kernel = decode_kernel(store.architecture());
  store.get(kernel.program, kernel.variant.kernel, kernel.variant.shared_bytes);
}

void find_and_load(benchmark::State& state) {
  if (cuda_device_count() == 0) return state.SkipWithError("no GPU");
  const Folder folder;
  load(folder.path());  // CUDA starts, the kernel is compiled
  for (auto _ : state) load(folder.path());
}
BENCHMARK(find_and_load)->Unit(benchmark::kMillisecond);

}  // namespace
