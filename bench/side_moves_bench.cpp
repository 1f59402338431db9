// Measures steps of decode while pages move: before, beside KvCache::rebalance_now, and after it;
// and KvCache::rebalance, for which decoding stands still, beside a plain copy of as many bytes.
//
//   mpirun -np RANKS side_moves_bench [tokens] [limit]
//
// 16 sequences of `tokens` tokens (4096), all on the first rank at first; `limit` pages (64) are on
// their way at once.
//
// 8 layers of 32/8 heads, dim 128, pages of 16 in bfloat16: 512 KiB a page. On GPUs where each rank
// has one, else on CPUs. Microseconds of a step, with its plan and until it is done.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "core/cuda/memory.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/kv_cache.hpp"

namespace {

using namespace kvmesh;

constexpr int kLayers = 8, kQHeads = 32, kKvHeads = 8, kDim = 128, kPageSize = 16, kSequences = 16;
constexpr double kPageBytes = 2.0 * kLayers * kKvHeads * kPageSize * kDim * 2;
constexpr std::int64_t kTokensOfPart = 4096;  // of a prompt, appended at once
constexpr int kSteps = 60;

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class Decode {
 public:
  Decode(Mesh& mesh, std::int64_t tokens)
      : mesh_(mesh),
        tokens_(tokens),
        q_(zeros(kSequences * kQHeads)),
        kv_(zeros(kTokensOfPart * kKvHeads)),
        o_(zeros(kSequences * kQHeads)),
        cache_(mesh, {.layers = kLayers,
                      .q_heads = kQHeads,
                      .kv_heads = kKvHeads,
                      .k_dim = kDim,
                      .page_size = kPageSize,
                      .pages_per_rank = kSequences * (tokens / kPageSize + 2 + kSteps),
                      .placement = Placement::kPacked}) {}

  /// All pages on the first rank.
  void fill() {
    for (const SequenceId sequence : sequences_) cache_.erase(sequence);
    sequences_.clear();
    batch_.clear();
    for (int i = 0; i < kSequences; ++i) {
      sequences_.push_back(cache_.create());
      batch_.push_back({sequences_.back(), 1, 1});
      for (std::int64_t done = 0; done < tokens_;) {
        const std::int64_t count = std::min(kTokensOfPart, tokens_ - done);
        StepPlan plan = cache_.plan({{sequences_.back(), count, 0}});
        for (int layer = 0; layer < kLayers; ++layer) plan.append(layer, rows(count), rows(count));
        done += count;
      }
    }
    step_.emplace(cache_.plan({}, {.limits = StepLimits{.sequences = kSequences}}));
    step();
  }

  void step() {
    cache_.replan(*step_, batch_);
    const TensorView q(q_.data(), Dtype::kBFloat16, {kSequences, kQHeads, kDim}, mesh_.device());
    const TensorView o(o_.data(), Dtype::kBFloat16, {kSequences, kQHeads, kDim}, mesh_.device());
    for (int layer = 0; layer < kLayers; ++layer)
      step_->run(layer, {.q = q, .k = rows(kSequences), .v = rows(kSequences)},
                 {.o = o, .lse = {}});
    mesh_.wait({}, "step");
  }
  /// Returns the pages that have moved, and whether some are on their way.
  MoveProgress move(std::int64_t limit) { return cache_.rebalance_now({.limit = limit}, Stream()); }
  std::int64_t rebalance() { return cache_.rebalance(1 << 30); }

 private:
  DeviceMemory zeros(std::int64_t rows) const {
    const std::vector<std::byte> bytes(static_cast<std::size_t>(rows * kDim * 2));
    DeviceMemory memory(mesh_.device(), bytes.size());
    copy_bytes(memory.data(), bytes.data(), bytes.size());
    return memory;
  }
  ConstTensorView rows(std::int64_t tokens) const {
    return {kv_.data(), Dtype::kBFloat16, {tokens, kKvHeads, kDim}, mesh_.device()};
  }

  Mesh& mesh_;
  std::int64_t tokens_;
  DeviceMemory q_, kv_, o_;
  KvCache cache_;
  std::vector<SequenceId> sequences_;
  std::vector<BatchEntry> batch_;
  std::optional<StepPlan> step_;
};

void print(const Mesh& mesh, const char* what, std::vector<double>& times) {
  std::ranges::sort(times);
  if (mesh.rank().value == 0)
    std::printf("%-28s %5zu steps    median %9.1f us    most %9.1f us\n", what, times.size(),
                1e6 * times[times.size() / 2], 1e6 * times.back());
}

void still(Mesh& mesh, Decode& decode, const char* what) {
  std::vector<double> times;
  for (int i = 0; i < kSteps; ++i) times.push_back(seconds([&] { decode.step(); }));
  print(mesh, what, times);
}

void beside(Mesh& mesh, Decode& decode, std::int64_t limit) {
  std::vector<double> times, calls;
  std::int64_t moved = 0;
  const double all = seconds([&] {
    for (MoveProgress now{.moving = 1}; now.moving > 0; moved += now.moved) {
      calls.push_back(seconds([&] { now = decode.move(limit); }));
      times.push_back(calls.back() + seconds([&] { decode.step(); }));
    }
  });
  print(mesh, "while pages move", times);
  print(mesh, "  of these, rebalance_now", calls);
  if (mesh.rank().value == 0)
    std::printf("  %lld pages, %.2f GB/s\n", static_cast<long long>(moved),
                static_cast<double>(moved) * kPageBytes / all * 1e-9);
}

/// Returns the seconds of a copy of as many bytes, to another GPU if there is one.
double plain_copy(const Mesh& mesh, double bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  Device other = mesh.device();
  if (other.kind == DeviceKind::kCuda) {
    ++other.index;
    cuda_memory::enable_peer_access(mesh.device().index,
                                    other.index);  // else it goes through the host
  }
  DeviceMemory from(mesh.device(), size), to(other, size);
  copy_bytes(from.data(), to.data(), size);  // the system gives the memory of CPUs as it is written
  copy_bytes(to.data(), from.data(), size);
  std::vector<double> times;
  for (int i = 0; i < 5; ++i)
    times.push_back(seconds([&] { copy_bytes(to.data(), from.data(), size); }));
  std::ranges::sort(times);
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t tokens = argc > 1 ? std::atoll(argv[1]) : 4096;
  const std::int64_t limit = argc > 2 ? std::atoll(argv[2]) : 64;
  const MpiSession session(argc, argv);
  const auto world = make_mpi_communicator();
  const bool has_gpus = cuda_device_count() >= world->size();
  Mesh mesh(*world, {.device = has_gpus ? DeviceChoice::kCuda : DeviceChoice::kCpu});
  Decode decode(mesh, tokens);
  decode.fill();
  beside(mesh, decode, limit);  // makes streams, buffers and kernels
  decode.fill();
  still(mesh, decode, "all on the first rank");
  beside(mesh, decode, limit);
  still(mesh, decode, "on all ranks");
  decode.fill();
  std::int64_t moved = 0;
  const double stands = seconds([&] { moved = decode.rebalance(); });
  if (mesh.rank().value != 0) return 0;
  const double bytes = static_cast<double>(moved) * kPageBytes, plain = plain_copy(mesh, bytes);
  std::printf("rebalance                    %5lld pages    stands still for %9.1f us, %.2f GB/s\n",
              static_cast<long long>(moved), 1e6 * stands, bytes / stands * 1e-9);
  std::printf("a plain copy of them                        %9.1f us, %.2f GB/s\n", 1e6 * plain,
              bytes / plain * 1e-9);
}
