// Measures the first use of an attention kernel: compiled, or found on disk; and, where there is a
// GPU, loaded. One kernel of each of Hopper's families is compiled: 32/8 heads of dim 128, pages of
// 16 tokens; latent: 576/512, pages of 64. The one on disk is that of decode.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <filesystem>

#include "kernels/cuda/attend/choose_attend.hpp"
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

cuda::AttendCase kv_case(int rows, Dtype pool = Dtype::kBFloat16) {
  const AttentionShape shape{
      .q_heads = 32, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .page_size = 16};
  return {.shape = shape,
          .kinds = {.pool = pool, .row_scales = pool == Dtype::kFloat8E4M3},
          .rows = rows};
}
cuda::AttendCase latent_case(int q_heads, int rows, Dtype pool = Dtype::kBFloat16) {
  const AttentionShape shape{
      .q_heads = q_heads, .kv_heads = 1, .k_dim = 576, .v_dim = 512, .page_size = 64};
  return {.shape = shape,
          .kinds = {.pool = pool, .latent = true, .row_scales = pool == Dtype::kFloat8E4M3},
          .rows = rows};
}
cuda::AttendCase exact_case() {
  cuda::AttendCase what = kv_case(8);
  what.exact = true;
  return what;
}

/// Causal.
Kernel kernel_of(const cuda::AttendCase& what) {
  const cuda::AttendVariant variant = cuda::choose_attend(what);
  const CudaMods mods = emit_cuda(ScoreMod().graph(), mods::causal().graph());
  return {variant, cuda::attend_program(variant, mods, what.architecture)};
}

Kernel decode_kernel(const std::string& architecture) {
  cuda::AttendCase what = kv_case(8);
  what.architecture = architecture;
  return kernel_of(what);
}

/// The label is the kernel's family.
void compile(benchmark::State& state, const cuda::AttendCase& what) {
  const Kernel kernel = kernel_of(what);
  state.SetLabel(kernel.variant.name);
  for (auto _ : state) benchmark::DoNotOptimize(jit::compile(kernel.program).bytes.data());
}
BENCHMARK_CAPTURE(compile, decode, kv_case(8))->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, prefill, kv_case(128))->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, decode_float8, kv_case(8, Dtype::kFloat8E4M3))
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, prefill_float8, kv_case(128, Dtype::kFloat8E4M3))
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, latent_16_heads, latent_case(16, 16))->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, latent_128_heads, latent_case(128, 64))->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, latent_float8_16_heads, latent_case(16, 16, Dtype::kFloat8E4M3))
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, latent_float8_128_heads, latent_case(128, 64, Dtype::kFloat8E4M3))
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(compile, exact_decode, exact_case())->Unit(benchmark::kMillisecond);

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
