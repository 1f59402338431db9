// Attention on a GPU: decode as a share of a plain streaming read measured in the same run, prefill
// in TFLOP/s. Pages are scattered over the pool, replicas of the batch are rotated so that L2 does
// not serve them, times are medians of graph replays. Counted: K, V, Q and O once; for prefill
// 4 * dim operations for each visible (query, key) pair.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include "kernels/cuda/attend_cuda.hpp"
#include "tests/gpu/bench_params.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/gpu/planned_batch.hpp"
#include "tests/kernels/jit/cache_support.hpp"

namespace kvmesh {
std::span<const jit::SourceFile> bench_kernel_sources();
}

namespace kvmesh::test {
namespace {

constexpr int kReplays = 11;
constexpr std::size_t kPoolBytes = std::size_t{2} << 30;  // of K, and of V
constexpr int kDim = 128;

jit::Kernel bench_kernel(const char* name) {
  return kernels().get({.files = bench_kernel_sources(),
                        .source = "tests/gpu/bench_kernels.cuh",
                        .architecture = kernels().architecture()},
                       name);
}

/// Median seconds of one of the `count` things that `enqueue` puts on a stream.
template <class Enqueue>
double seconds_of(int count, const Enqueue& enqueue) {
  const Stream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue(static_cast<cudaStream_t>(stream));
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < kReplays + 2; ++i) {
    check(cudaEventRecord(begin, stream));
    check(cudaGraphLaunch(executable, stream));
    check(cudaEventRecord(end, stream));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms * 1e-3 / count);
  }
  check(cudaGraphExecDestroy(executable));
  check(cudaGraphDestroy(graph));
  std::ranges::sort(times);
  return times[times.size() / 2];
}

struct Tensors {
  cuda::DeviceBuffer k{kPoolBytes}, v{kPoolBytes}, q{std::size_t{512} << 20},
      o{std::size_t{1} << 30}, lse{std::size_t{64} << 20};
};

void fill(const cuda::DeviceBuffer& buffer, unsigned seed) {
  const BenchParams params{buffer.as<BenchUnit>(), static_cast<long long>(buffer.size_bytes() / 16),
                           seed};
  bench_kernel("fill_random").launch({.grid = dim3(1024), .block = dim3(512)}, params);
  check(cudaDeviceSynchronize());
}

/// Bytes a second of a plain read of the pool.
double ceiling(const Tensors& tensors) {
  const BenchParams params{tensors.k.as<BenchUnit>(), static_cast<long long>(kPoolBytes / 16),
                           12345};
  const jit::Kernel kernel = bench_kernel("read_all");
  double best = 0;
  for (unsigned blocks_per_sm : {2u, 4u}) {
    const unsigned blocks = static_cast<unsigned>(kernels().multiprocessors()) * blocks_per_sm;
    const double seconds = seconds_of(1, [&](cudaStream_t stream) {
      kernel.launch({.stream = stream, .grid = dim3(blocks), .block = dim3(512)}, params);
    });
    best = std::max(best, static_cast<double>(kPoolBytes) / seconds);
  }
  return best;
}

struct Bench {
  const char* name;
  std::vector<std::int64_t> kv_lens;
  std::int64_t q_len;
  int q_heads, kv_heads, page_size;
  bool causal;
};

class Runner {
 public:
  Runner(const Bench& bench, Tensors& tensors, std::mt19937& random)
      : bench_(bench),
        shape_{bench.q_heads, bench.kv_heads, kDim, kDim, bench.page_size},
        tensors_(tensors) {
    if (bench.causal) options_.mask = mods::causal();
    const std::int64_t pages = pool_pages();
    std::vector<std::int32_t> order(static_cast<std::size_t>(pages));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::int64_t needed = 0;
    for (std::int64_t length : bench.kv_lens)
      needed += (length + shape_.page_size - 1) / shape_.page_size;
    const std::int64_t replicas = std::clamp<std::int64_t>(pages / needed, 1, 8);
    std::size_t next = 0;
    for (std::int64_t r = 0; r < replicas; ++r) add_plan(order, next);
  }

  void run(double ceiling_bytes) {
    const auto count = static_cast<int>(plans_.size());
    const double seconds = seconds_of(count, [&](cudaStream_t stream) {
      for (auto& plan : plans_) plan.launch(q(), pool(), out(), stream);
    });
    const double bytes = kv_bytes() + static_cast<double>(tokens()) * shape_.q_heads * kDim * 6;
    const double tflops = pairs() * 4 * kDim * shape_.q_heads / seconds * 1e-12;
    fmt::print(
        "{:<34} {:9.1f} us {:7.0f} GB/s {:5.1f} % {:7.1f} TFLOP/s  plan {:5.1f} us on the "
        "host, {:5.1f} us in all; {:.1f} MiB workspace, {} replicas\n",
        bench_.name, seconds * 1e6, bytes / seconds * 1e-9, 100 * bytes / seconds / ceiling_bytes,
        tflops, plan_host_us_, plan_us_,
        static_cast<double>(plans_[0].workspace_bytes()) / (1 << 20), count);
  }

 private:
  std::int64_t tokens() const { return bench_.q_len * std::ssize(bench_.kv_lens); }
  std::int64_t pool_pages() const {
    return static_cast<std::int64_t>(kPoolBytes) / (shape_.kv_heads * shape_.page_size * kDim * 2);
  }
  double kv_bytes() const {
    const auto keys =
        std::accumulate(bench_.kv_lens.begin(), bench_.kv_lens.end(), std::int64_t{0});
    return static_cast<double>(keys) * shape_.kv_heads * kDim * 4;
  }
  double pairs() const {
    double sum = 0;
    for (std::int64_t length : bench_.kv_lens) {
      const auto l = static_cast<double>(length), q = static_cast<double>(bench_.q_len);
      sum += bench_.causal ? q * (l - q) + q * (q + 1) / 2 : q * l;
    }
    return sum;
  }

  void add_plan(const std::vector<std::int32_t>& order, std::size_t& next) {
    AttentionBatch batch;
    batch.q_indptr = batch.page_indptr = {0};
    for (std::int64_t length : bench_.kv_lens) {
      for (std::int32_t page = 0; page * shape_.page_size < length; ++page) {
        batch.pages.push_back({order[next++ % order.size()], page});
      }
      batch.kv_lens.push_back(length);
      batch.q_indptr.push_back(batch.q_indptr.back() + bench_.q_len);
      batch.page_indptr.push_back(std::ssize(batch.pages));
    }
    const int group = shape_.q_heads / shape_.kv_heads;
    cuda::CudaAttend& plan = plans_.emplace_back(
        kernels(), shape_,
        cuda::CudaAttend::Options{.attention = options_,
                                  .short_rows = PlannedBatch::short_rows(batch, group)});
    lists_.push_back(std::make_unique<cuda::PageLists>());
    const PlannedBatch planned(batch, *lists_.back());
    const Stream stream;
    plan.plan(*lists_.back(), planned.step(), stream);
    stream.wait();
    measure_planning(plan, planned, stream);
  }

  /// The host's part of a plan whose pages are there, and all of it on the device.
  void measure_planning(cuda::CudaAttend& plan, const PlannedBatch& planned, const Stream& stream) {
    constexpr int kTurns = 50;
    const auto now = [] { return std::chrono::steady_clock::now(); };
    const auto begin = now();
    std::chrono::nanoseconds host{0};
    for (int i = 0; i < kTurns; ++i) {
      const auto start = now();
      plan.plan(*lists_.back(), planned.step(), stream);
      host += now() - start;
      stream.wait();
    }
    const auto us = [](auto time) {
      return std::chrono::duration<double, std::micro>(time).count() / kTurns;
    };
    plan_host_us_ = us(host);
    plan_us_ = us(now() - begin);
  }

  ConstTensorView q() const {
    return {tensors_.q.data(), Dtype::kBFloat16, {tokens(), shape_.q_heads, kDim}};
  }
  ConstKvPool pool() const {
    const std::int64_t pages = pool_pages();
    return {
        {tensors_.k.data(), Dtype::kBFloat16, {pages, shape_.kv_heads, shape_.page_size, kDim}},
        {tensors_.v.data(), Dtype::kBFloat16, {pages, shape_.kv_heads, shape_.page_size, kDim}}};
  }
  Partial out() const {
    return {{tensors_.o.data(), Dtype::kFloat32, {tokens(), shape_.q_heads, kDim}},
            {tensors_.lse.data(), Dtype::kFloat32, {tokens(), shape_.q_heads}}};
  }

  const Bench bench_;
  const AttentionShape shape_;
  Tensors& tensors_;
  AttentionOptions options_;
  std::vector<cuda::CudaAttend> plans_;
  std::vector<std::unique_ptr<cuda::PageLists>> lists_;
  double plan_host_us_ = 0, plan_us_ = 0;
};

std::vector<std::int64_t> ragged() {
  std::vector<std::int64_t> lengths;
  for (int i = 0; i < 16; ++i) lengths.push_back(128 + (16384 - 128) * ((i * 7) % 16) / 15);
  return lengths;
}

/// What the first use of a shape costs: compiled, then found in the cache on disk and loaded.
void measure_start() {
  const TemporaryDirectory folder;
  for (const char* what : {"compiled", "from the cache"}) {
    const auto begin = std::chrono::steady_clock::now();
    cuda::KernelStore store(0, folder.path());
    const cuda::AttendLimits limits{.sequences = 8, .queries = 1, .pages = 64};
    const cuda::CudaAttend attend(store, {32, 8, kDim, kDim, 16}, {.limits = limits});
    const auto time = std::chrono::steady_clock::now() - begin;
    fmt::print("decode's kernels, {}: {:.1f} ms\n", what,
               std::chrono::duration<double, std::milli>(time).count());
  }
}

int main_of() {
  Tensors tensors;
  fill(tensors.k, 1);
  fill(tensors.v, 2);
  fill(tensors.q, 3);
  const double bytes = ceiling(tensors);
  fmt::print("streaming read: {:.0f} GB/s\n", bytes * 1e-9);
  using Lengths = std::vector<std::int64_t>;
  const Bench benches[] = {
      {"decode 64 x 8192, 32/8, p16", Lengths(64, 8192), 1, 32, 8, 16, false},
      {"decode 64 x 8192, 32/8, p64", Lengths(64, 8192), 1, 32, 8, 64, false},
      {"decode 1 x 131072, 32/8, p16", Lengths(1, 131072), 1, 32, 8, 16, false},
      {"decode 256 x 1024, 64/8, p16", Lengths(256, 1024), 1, 64, 8, 16, false},
      {"decode 32 x 4096, 32/32, p16", Lengths(32, 4096), 1, 32, 32, 16, false},
      {"decode 16 x ragged, 64/8, p16", ragged(), 1, 64, 8, 16, false},
      {"decode 1 x 8192, 64/8, p16", Lengths(1, 8192), 1, 64, 8, 16, false},
      {"64 x 8192, 32/8, p16, q=4 causal", Lengths(64, 8192), 4, 32, 8, 16, true},
      {"64 x 8192, 32/8, p16, q=8 causal", Lengths(64, 8192), 8, 32, 8, 16, true},
      {"64 x 8192, 32/8, p16, q=16 causal", Lengths(64, 8192), 16, 32, 8, 16, true},
      {"prefill 2 x 8192 causal, 32/8, p16", Lengths(2, 8192), 8192, 32, 8, 16, true},
      {"prefill 8 x 2048 causal, 32/8, p16", Lengths(8, 2048), 2048, 32, 8, 16, true},
      {"chunk 512 of 32768, 4, 32/8, p16", Lengths(4, 32768), 512, 32, 8, 16, true},
  };
  measure_start();
  std::mt19937 random(7);
  for (const Bench& bench : benches) {
    Runner(bench, tensors, random).run(bytes);
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace kvmesh::test

int main() {
  try {
    return kvmesh::test::main_of();
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
