// Measures moves of pages on a GPU beside plain copies of as many bytes, turn by turn in one run.
//
//   page_moves_bench [pages]       each page has 32 layers of 2 planes: 8 heads, 16 tokens, 256
//   bytes
//
// Pages and their images lie in random order, as after a while of serving. Gigabytes per second,
// counted once; the median of the turns, and of their ratios.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "bench/shuffled_moves.hpp"
#include "core/cuda/device_buffer.hpp"
#include "core/cuda/memory.hpp"
#include "kernels/cuda/pool/page_copier.hpp"

namespace {

using namespace kvmesh;
using namespace kvmesh::bench;

constexpr PageShape kPage{.planes = 64};
constexpr std::int64_t kPageBytes = kPage.bytes();
constexpr int kTurns = 21;

class Timer {
 public:
  Timer() {
    check(cudaEventCreate(&begin_));
    check(cudaEventCreate(&end_));
  }
  double seconds(cudaStream_t stream, const std::function<void()>& work) const {
    check(cudaEventRecord(begin_, stream));
    work();
    check(cudaEventRecord(end_, stream));
    check(cudaEventSynchronize(end_));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin_, end_));
    return ms / 1000;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

/// Two pools on the device, and images in pinned memory.
class Pages {
 public:
  explicit Pages(std::int64_t pages)
      : from_(static_cast<std::size_t>(pages * kPageBytes)),
        to_(from_.size_bytes()),
        images_(cuda_memory::allocate_pinned(0, from_.size_bytes())),
        moves_(kPage, pages, static_cast<std::byte*>(images_.get())) {}

  std::size_t bytes() const { return from_.size_bytes(); }
  void* from() const { return from_.data(); }
  void* to() const { return to_.data(); }
  void* images() const { return images_.get(); }

  void between_pools(cudaStream_t stream) { move(true, true, stream); }
  void store(cudaStream_t stream) { move(true, false, stream); }
  void load(cudaStream_t stream) { move(false, true, stream); }

 private:
  void move(bool has_source, bool has_destination, cudaStream_t stream) {
    copier_.move(moves_.between(has_source ? from_.as<std::byte>() : nullptr,
                                has_destination ? to_.as<std::byte>() : nullptr),
                 stream);
  }

  cuda::DeviceBuffer from_, to_;
  cuda_memory::Owner images_;
  ShuffledMoves moves_;
  cuda::PageCopier copier_;
};

void measure(const char* name, std::size_t bytes, cudaStream_t stream,
             const std::function<void()>& moves, const std::function<void()>& plain) {
  const Timer timer;
  std::vector<double> of_moves, of_plain, shares;
  for (int turn = -2; turn < kTurns; ++turn) {
    const double mine = timer.seconds(stream, moves), top = timer.seconds(stream, plain);
    if (turn < 0) continue;
    of_moves.push_back(mine);
    of_plain.push_back(top);
    shares.push_back(top / mine);
  }
  const auto rate = [&](const std::vector<double>& seconds) {
    return static_cast<double>(bytes) / median(seconds) / 1e9;
  };
  std::printf("%-32s %8.1f GB/s   plain copy %8.1f GB/s   share %5.1f %%\n", name, rate(of_moves),
              rate(of_plain), 100 * median(shares));
}

}  // namespace

int main(int argc, char** argv) {
  Pages pages(argc > 1 ? std::atoll(argv[1]) : 1024);
  const auto owner = cuda_memory::make_stream(0);
  auto* const stream = static_cast<cudaStream_t>(owner.get());
  const auto copy = [&](void* to, const void* from) {
    return [&pages, to, from, stream] {
      check(cudaMemcpyAsync(to, from, pages.bytes(), cudaMemcpyDefault, stream));
    };
  };
  measure(
      "device to device", pages.bytes(), stream, [&] { pages.between_pools(stream); },
      copy(pages.to(), pages.from()));
  measure(
      "device to host tier", pages.bytes(), stream, [&] { pages.store(stream); },
      copy(pages.images(), pages.from()));
  measure(
      "host tier to device", pages.bytes(), stream, [&] { pages.load(stream); },
      copy(pages.to(), pages.images()));
  return 0;
}
