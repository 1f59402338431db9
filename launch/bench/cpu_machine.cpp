// The CPU: the mesh's threads, the host's clock.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>

#include "kvmesh/attention.hpp"
#include "kvmesh/device_memory.hpp"
#include "launch/bench/cpu_caches.hpp"
#include "launch/bench/cpu_multiply.hpp"
#include "launch/bench/machine.hpp"

namespace kvmesh::bench {
namespace {

using Clock = std::chrono::steady_clock;

// The first "name : value" of a file like /proc/meminfo.
std::string value_in(const char* file, std::string_view name) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t colon = line.find(':');
    if (!line.starts_with(name) || colon == std::string::npos) continue;
    return line.substr(std::min(line.size(), line.find_first_not_of(" \t", colon + 1)));
  }
  return {};
}

std::uint32_t hash(std::uint32_t x) {
  x *= 2654435761u;
  x ^= x >> 16;
  x *= 2246822519u;
  return x ^ (x >> 13);
}

double seconds_a_call(const Repeated& repeated) {
  const Clock::time_point start = Clock::now();
  for (int call = 0; call < repeated.calls; ++call) repeated.work(call, {});
  return std::chrono::duration<double>(Clock::now() - start).count() / repeated.calls;
}

class CpuMachine : public Machine {
 public:
  CpuMachine(Mesh& mesh, std::int64_t rotate_bytes)
      : mesh_(mesh),
        rotate_bytes_(rotate_bytes > 0 ? rotate_bytes : 2 * last_level_cache_bytes()) {}

  Turns time(const Repeated& operation, std::span<const Repeated> ceilings, const Work&,
             int turns) override {
    Turns result;
    result.ceilings.resize(ceilings.size());
    for (int turn = 0; turn < turns; ++turn) {
      if (operation.prepare) operation.prepare({});
      barrier(mesh_.world(), "bench: operation");
      result.operation.push_back(seconds_a_call(operation));
      for (std::size_t i = 0; i < ceilings.size(); ++i) {
        barrier(mesh_.world(), "bench: ceiling");
        result.ceilings[i].push_back(seconds_a_call(ceilings[i]));
      }
    }
    return result;
  }

  void fill(const TensorView& tensor, const FillPattern& pattern, unsigned seed) override {
    const auto bytes = tensor.elements() * static_cast<std::int64_t>(size_bytes(tensor.dtype));
    in_parts(bytes, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t at = begin; at < end; at += 4) {
        const std::uint32_t word =
            pattern.base | (hash(static_cast<std::uint32_t>(at / 4) + seed) & pattern.mask);
        std::memcpy(static_cast<std::byte*>(tensor.data) + at, &word,
                    static_cast<std::size_t>(std::min<std::int64_t>(4, end - at)));
      }
    });
  }

  // Reads a quarter of the memory per call: when a quarter's turn comes again, the other three have
  // passed through the caches.
  Ceiling read() override {
    constexpr std::int64_t kQuarters = 4;
    if (plain_.size_bytes() == 0) {
      plain_ = DeviceMemory({}, static_cast<std::size_t>(rotate_bytes_));
      std::memset(plain_.data(), 1, plain_.size_bytes());
    }
    const std::int64_t bytes = rotate_bytes_ / kQuarters / 64 * 64;
    return {.name = "streaming read",
            .amount = static_cast<double>(bytes),
            .repeated = {.work = [this, bytes](int, Stream) {
              read(static_cast<const std::byte*>(plain_.data()) + next_++ % kQuarters * bytes,
                   bytes);
            }}};
  }

  Ceiling multiply(Dtype) override {
    constexpr std::int64_t kSteps = 1 << 19;  // some milliseconds
    const auto threads = static_cast<std::int64_t>(mesh_.threads().threads());
    return {.name = "float32 multiply-adds from registers",
            .amount = static_cast<double>(kSteps * threads * operations_of_step()),
            .repeated = {.work = [this, threads](int, Stream) {
              mesh_.threads().for_each(threads, [this](std::int64_t, int) {
                keep(multiply_from_registers(kSteps) > 0 ? 1u : 0u);
              });
            }}};
  }

  void copy(void* to, const void* from, std::size_t size_bytes, Stream) override {
    in_parts(static_cast<std::int64_t>(size_bytes), [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(static_cast<std::byte*>(to) + begin, static_cast<const std::byte*>(from) + begin,
                  static_cast<std::size_t>(end - begin));
    });
  }

  // Moves are a thread's work.
  Ceiling copy_within(std::size_t size_bytes) override {
    const auto from = std::make_shared<std::vector<std::byte>>(size_bytes, std::byte{1});
    const auto to = std::make_shared<std::vector<std::byte>>(size_bytes);
    return {.name = "memcpy of as many bytes",
            .amount = static_cast<double>(size_bytes),
            .repeated = {.work = [from, to](int, Stream) {
              std::memcpy(to->data(), from->data(), from->size());
            }}};
  }
  Ceiling copy_to_host(std::size_t size_bytes, bool) override { return copy_within(size_bytes); }

  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                Stream) override {
    mesh_.kv_comm().exchange(outgoing, incoming, "bench: plain exchange");
  }
  bool captures_exchange() override { return false; }
  bool captures_combine(std::optional<WayKind>) override { return false; }

  std::int64_t rotate_bytes() const override { return rotate_bytes_; }
  std::int64_t memory_bytes() const override {
    const std::string available = value_in("/proc/meminfo", "MemAvailable");
    const std::int64_t kib = available.empty() ? 1 << 20 : std::stoll(available);
    return kib * 1024 / 2 / mesh_.size();  // all ranks may be on this machine
  }
  double turn_seconds() const override { return 0.01; }

  MachineInfo info() const override {
    return {.device = model_name(), .driver = {}, .versions = mpi_library()};
  }

 private:
  std::string model_name() const {
    std::string model = value_in("/proc/cpuinfo", "model name");
    if (model.empty()) model = "CPU";
    return model + ", " + std::string(cpu_instruction_set()) + ", " +
           std::to_string(mesh_.threads().threads()) + " threads a rank";
  }

  // Divides [0, bytes) evenly over the threads, at multiples of 64. Small ranges run on this thread
  // alone: waking the others takes longer.
  void in_parts(std::int64_t bytes,
                const std::function<void(std::int64_t, std::int64_t)>& part) const {
    constexpr std::int64_t kSmallBytes = 256 << 10;
    if (bytes <= kSmallBytes) return part(0, bytes);
    const std::int64_t threads = mesh_.threads().threads();
    const std::int64_t step = (bytes / threads + 63) / 64 * 64;
    mesh_.threads().for_each(threads, [&](std::int64_t i, int) {
      const std::int64_t begin = std::min(bytes, i * step);
      part(begin, i + 1 == threads ? bytes : std::min(bytes, begin + step));
    });
  }

  void read(const std::byte* from, std::int64_t bytes) {
    in_parts(bytes, [&](std::int64_t begin, std::int64_t end) {
      const auto* words = reinterpret_cast<const std::uint64_t*>(from + begin);
      std::uint64_t sum[8] = {};
      for (std::int64_t i = 0; i + 8 <= (end - begin) / 8; i += 8) {
        for (int lane = 0; lane < 8; ++lane) sum[lane] += words[i + lane];
      }
      for (const std::uint64_t value : sum) keep(static_cast<unsigned>(value));
    });
  }

  // Stores results, so that the compiler cannot remove their computation.
  void keep(unsigned value) { sink_.fetch_xor(value, std::memory_order_relaxed); }

  Mesh& mesh_;
  std::int64_t rotate_bytes_;
  DeviceMemory plain_;
  std::int64_t next_ = 0;
  std::atomic<unsigned> sink_ = 0;
};

}  // namespace

std::unique_ptr<Machine> make_cpu_machine(Mesh& mesh, std::int64_t rotate_bytes) {
  return std::make_unique<CpuMachine>(mesh, rotate_bytes);
}

}  // namespace kvmesh::bench
