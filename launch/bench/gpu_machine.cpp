// A GPU: events around replayed graphs.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <regex>
#include <string_view>
#include <thread>

#include "kvmesh/device_memory.hpp"
#include "launch/bench/cuda_handles.hpp"
#include "launch/bench/gpu_gather.hpp"
#include "launch/bench/gpu_kernels.hpp"
#include "launch/bench/machine.hpp"
#include "launch/bench/nccl_exchange.hpp"

namespace kvmesh::bench {
namespace {

constexpr std::size_t kReadBytes = std::size_t{1} << 30;  // a quarter of a millisecond
constexpr std::size_t kOwnCopyBytes = std::size_t{128} << 20;
// The driver clears freed memory while programs go on: 34 GB made an H200's reads 12 % slower for
// 80 ms, 68 GB for 150 ms.
constexpr double kClearedBytesPerSecond = 300e9;

cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// A repeated operation, ready to be given to a stream many times.
class Prepared {
 public:
  Prepared(const Repeated& repeated, cudaStream_t stream) : repeated_(repeated), stream_(stream) {
    if (!repeated.work || !repeated.capturable) return;
    graph_.emplace(capture(stream, [&] { enqueue_calls(); }));
    check(cudaGraphUpload(graph_->get(), stream));
  }

  void enqueue() const {
    if (!repeated_.work) return;
    if (graph_) return check(cudaGraphLaunch(graph_->get(), stream_));
    enqueue_calls();
  }

 private:
  void enqueue_calls() const {
    for (int call = 0; call < repeated_.calls; ++call) repeated_.work(call, {stream_});
  }

  const Repeated& repeated_;
  cudaStream_t stream_;
  std::optional<CudaGraph> graph_;
};

class GpuMachine : public Machine {
 public:
  GpuMachine(Mesh& mesh, std::int64_t rotate_bytes)
      : mesh_(mesh),
        group_(mesh.device_group().nccl()),
        stream_(make_stream()),
        sink_(mesh.device(), sizeof(unsigned)) {
    check(cudaGetDeviceProperties(&properties_, mesh.device().index));
    rotate_bytes_ = rotate_bytes > 0 ? rotate_bytes : 4 * std::int64_t{properties_.l2CacheSize};
  }

  Turns time(const Repeated& operation, std::span<const Repeated> ceilings, const Work& align,
             int turns) override {
    const Repeated aligning{.work = align, .calls = 1, .capturable = operation.capturable};
    const Prepared first(aligning, stream_.get()), work(operation, stream_.get());
    std::vector<Prepared> tops;
    for (const Repeated& ceiling : ceilings) tops.emplace_back(ceiling, stream_.get());
    wait();
    barrier(mesh_.world(), "bench: turns");
    // While this kernel runs, the host gets ahead of the device, and stays ahead.
    if (turns > 1) work.enqueue();
    // Events of each turn: before the operation, after it, and after each ceiling.
    std::vector<std::vector<CudaEvent>> marks(static_cast<std::size_t>(turns));
    for (std::vector<CudaEvent>& turn : marks) {
      turn = std::vector<CudaEvent>(tops.size() + 2);
      if (operation.prepare) operation.prepare({stream_.get()});
      first.enqueue();
      turn[0].record(stream_.get());
      work.enqueue();
      turn[1].record(stream_.get());
      for (std::size_t i = 0; i < tops.size(); ++i) {
        tops[i].enqueue();
        turn[i + 2].record(stream_.get());
      }
    }
    wait();
    Turns result;
    result.timing = operation.capturable ? Timing::kGraph : Timing::kStream;
    result.ceilings.resize(tops.size());
    for (const std::vector<CudaEvent>& turn : marks) {
      result.operation.push_back(turn[1].seconds_since(turn[0]) / operation.calls);
      for (std::size_t i = 0; i < tops.size(); ++i) {
        result.ceilings[i].push_back(turn[i + 2].seconds_since(turn[i + 1]) / ceilings[i].calls);
      }
    }
    return result;
  }

  void fill(const TensorView& tensor, const FillPattern& pattern, unsigned seed) override {
    const auto bytes =
        static_cast<std::size_t>(tensor.elements()) * kvmesh::size_bytes(tensor.dtype);
    launch_fill(tensor.data, bytes, pattern, seed, stream_.get());
    check(cudaGetLastError());
    wait();
  }

  Ceiling read() override {
    if (plain_.size_bytes() == 0) prepare_read();
    const std::size_t bytes = bytes_of_read(plain_.size_bytes());
    return {.name = "streaming read",
            .amount = static_cast<double>(bytes),
            .repeated = {.work = [this, bytes](int, Stream stream) {
              launch_read(plain_.data(), bytes, read_blocks_, sink(), native(stream));
              check(cudaGetLastError());
            }}};
  }

  std::optional<Ceiling> gather(const PageReads& reads) override {
    if (reads.pools.empty() || !std::ranges::all_of(reads.pools, can_gather)) return std::nullopt;
    const auto gather = std::make_shared<const GpuGather>(
        reads, mesh_.device(), properties_.multiProcessorCount, stream_.get());
    int call = 0;
    const int blocks =
        fastest_grid({1, 2, 3}, [&](int grid) { gather->enqueue(call++, grid, stream_.get()); });
    return Ceiling{.name = "bare gather of the same pages",
                   .repeated = {.work =
                                    [gather, blocks](int layer, Stream stream) {
                                      gather->enqueue(layer, blocks, native(stream));
                                    }},
                   .as_often = true};
  }

  Ceiling multiply(Dtype dtype) override {
    const auto run = [this, dtype](cudaStream_t stream) {
      const double operations =
          launch_multiply(dtype, properties_.multiProcessorCount, sink(), stream);
      check(cudaGetLastError());
      return operations;
    };
    return {.name = dtype == Dtype::kFloat32 ? "float32 multiply-adds from registers"
                                             : "mma.sync m16n8k16 from registers",
            .amount = run(stream_.get()),
            .repeated = {.work = [run](int, Stream stream) { run(native(stream)); }}};
  }

  // The runtime's own copy is the faster of the two up to some hundred megabytes.
  void copy(void* to, const void* from, std::size_t size_bytes, Stream stream) override {
    if (size_bytes >= kOwnCopyBytes && size_bytes % 16 == 0) {
      launch_copy(to, from, size_bytes, native(stream));
      return check(cudaGetLastError());
    }
    check(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, native(stream)));
  }

  Ceiling copy_within(std::size_t size_bytes) override {
    const auto from = std::make_shared<DeviceMemory>(mesh_.device(), size_bytes);
    const auto to = std::make_shared<DeviceMemory>(mesh_.device(), size_bytes);
    return {.name = "copy of as many bytes",
            .amount = static_cast<double>(size_bytes),
            .repeated = {.work = [this, from, to](int, Stream stream) {
              copy(to->data(), from->data(), from->size_bytes(), stream);
            }}};
  }
  Ceiling copy_to_host(std::size_t size_bytes, bool is_back) override {
    const auto here = std::make_shared<DeviceMemory>(mesh_.device(), size_bytes);
    void* data = nullptr;
    check(cudaHostAlloc(&data, size_bytes, cudaHostAllocDefault));
    const std::shared_ptr<void> host(data, [](void* p) { static_cast<void>(cudaFreeHost(p)); });
    return {
        .name = is_back ? "copy of as many bytes from pinned memory"
                        : "copy of as many bytes to pinned memory",
        .amount = static_cast<double>(size_bytes),
        .repeated = {.work = [here, host, is_back](int, Stream stream) {
          void* const to = is_back ? here->data() : host.get();
          const void* const from = is_back ? host.get() : here->data();
          check(cudaMemcpyAsync(to, from, here->size_bytes(), cudaMemcpyDefault, native(stream)));
        }}};
  }

  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                Stream stream) override {
    if (group_) return nccl_exchange(*group_, outgoing, incoming, stream);
    exchange_by_host(outgoing, incoming, stream);
  }
  bool captures_exchange() override { return group_ != nullptr; }
  // The cache takes the requested way, here or by the environment, else NCCL or peer.
  bool captures_combine(std::optional<WayKind> way) override {
    const char* preferred = std::getenv("KVMESH_COMBINE_WAY");
    const std::string_view asked = way ? name(*way) : preferred != nullptr ? preferred : "";
    if (asked == name(WayKind::kStaged)) return false;
    const bool has_windows = mesh_.device_group().peer_window() != nullptr;
    return group_ != nullptr || (asked == name(WayKind::kPeer) && has_windows);
  }

  void cool_down(std::int64_t freed_bytes) override {
    std::this_thread::sleep_for(
        std::chrono::duration<double>(static_cast<double>(freed_bytes) / kClearedBytesPerSecond));
  }

  std::int64_t rotate_bytes() const override { return rotate_bytes_; }
  std::int64_t memory_bytes() const override {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total));
    const int sharing = std::max(1, mesh_.size() / std::max(1, cuda_device_count()));
    return static_cast<std::int64_t>(free / 10 * 9) / sharing;
  }
  double turn_seconds() const override { return 0.002; }
  MachineInfo info() const override;

 private:
  unsigned* sink() const { return static_cast<unsigned*>(sink_.data()); }

  void wait() { mesh_.wait({stream_.get()}, "bench"); }

  void prepare_read() {
    const auto bytes = std::max(kReadBytes, static_cast<std::size_t>(rotate_bytes_));
    plain_ = DeviceMemory(mesh_.device(), bytes);
    check(cudaMemsetAsync(plain_.data(), 1, bytes, stream_.get()));
    read_blocks_ = fastest_grid({4, 16, 64, 128}, [&](int blocks) {
      launch_read(plain_.data(), bytes_of_read(bytes), blocks, sink(), stream_.get());
    });
  }

  // Returns the fastest number of blocks for `run(blocks)` among these numbers per multiprocessor.
  template <class Run>
  int fastest_grid(std::initializer_list<int> per_multiprocessor, const Run& run) {
    constexpr int kRuns = 3;
    double best = std::numeric_limits<double>::infinity();
    int fastest = 0;
    for (const int count : per_multiprocessor) {
      const int blocks = count * properties_.multiProcessorCount;
      const CudaEvent begin, end;
      for (int i = 0; i < kRuns; ++i) {
        begin.record(stream_.get());
        run(blocks);
        end.record(stream_.get());
        wait();
        const double seconds = end.seconds_since(begin);
        if (seconds >= best) continue;
        best = seconds;
        fastest = blocks;
      }
    }
    return fastest;
  }

  // As the staged combine: where ranks share a GPU, or without NCCL.
  void exchange_by_host(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                        Stream stream) {
    mesh_.wait(stream, "bench: plain exchange");
    std::vector<std::vector<std::byte>> buffers;
    std::vector<Outgoing> out;
    std::vector<Incoming> in;
    buffers.reserve(outgoing.size() + incoming.size());
    for (const Outgoing& message : outgoing) {
      out.push_back({message.to, buffers.emplace_back(message.bytes.size())});
      copy_bytes(buffers.back().data(), message.bytes.data(), message.bytes.size());
    }
    for (const Incoming& message : incoming) {
      in.push_back({message.from, buffers.emplace_back(message.bytes.size())});
    }
    mesh_.kv_comm().exchange(out, in, "bench: plain exchange");
    for (std::size_t i = 0; i < in.size(); ++i) {
      copy_bytes(incoming[i].bytes.data(), in[i].bytes.data(), in[i].bytes.size());
    }
  }

  Mesh& mesh_;
  NcclGroup* group_;
  CudaStream stream_;
  DeviceMemory sink_;
  DeviceMemory plain_;
  cudaDeviceProp properties_{};
  std::int64_t rotate_bytes_ = 0;
  int read_blocks_ = 0;
};

// The version of the kernel module; the runtime knows only the CUDA version that the driver
// supports.
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  std::string line;
  std::getline(file, line);
  std::smatch match;
  return std::regex_search(line, match, std::regex("[0-9]+\\.[0-9.]+")) ? match.str() : "unknown";
}

MachineInfo GpuMachine::info() const {
  int runtime = 0;
  check(cudaRuntimeGetVersion(&runtime));
  const std::string nccl = nccl_version();
  return {.device = properties_.name,
          .driver = driver_version(),
          .versions = "CUDA " + std::to_string(runtime / 1000) + "." +
                      std::to_string(runtime % 1000 / 10) +
                      (nccl.empty() ? ", no NCCL" : ", NCCL " + nccl) + ", " + mpi_library()};
}

}  // namespace

std::unique_ptr<Machine> make_gpu_machine(Mesh& mesh, std::int64_t rotate_bytes) {
  return std::make_unique<GpuMachine>(mesh, rotate_bytes);
}

}  // namespace kvmesh::bench
