// Measures moves of pages on a GPU beside plain copies of as many bytes, turn by turn in one run.
//
//   page_moves_bench [pages]       each page has 32 layers of 2 planes: 8 heads, 16 tokens, 256
//                                  bytes
//
// With a second GPU also moves that read its pool over the link, as the rank does whose pages come.
// Pages and their images lie in random order, as after a while of serving. Gigabytes per second,
// counted once; the median of the turns, and of their ratios.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "bench/shuffled_moves.hpp"
#include "core/cuda/check.hpp"
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

/// A pool on the first device, one on `source_device`, and images in pinned memory.
class Pages {
 public:
  Pages(std::int64_t pages, int source_device)
      : bytes_(static_cast<std::size_t>(pages * kPageBytes)),
        from_(cuda_memory::allocate(source_device, bytes_)),
        to_(cuda_memory::allocate(0, bytes_)),
        images_(cuda_memory::allocate_pinned(0, bytes_)),
        moves_(kPage, pages, static_cast<std::byte*>(images_.get())) {}

  std::size_t bytes() const { return bytes_; }
  void* from() const { return from_.get(); }
  void* to() const { return to_.get(); }
  void* images() const { return images_.get(); }

  void between_pools(cudaStream_t stream) { move(true, true, stream); }
  void store(cudaStream_t stream) { move(true, false, stream); }
  void load(cudaStream_t stream) { move(false, true, stream); }

 private:
  void move(bool has_source, bool has_destination, cudaStream_t stream) {
    const auto pool = [](const cuda_memory::OwnedMemory& owner) {
      return static_cast<std::byte*>(owner.get());
    };
    copier_.move(
        moves_.between(has_source ? pool(from_) : nullptr, has_destination ? pool(to_) : nullptr),
        stream);
  }

  std::size_t bytes_;
  cuda_memory::OwnedMemory from_, to_;
  cuda_memory::OwnedPinnedMemory images_;
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

void copy(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream));
}

void measure_between_pools(const char* name, Pages& pages, cudaStream_t stream) {
  measure(
      name, pages.bytes(), stream, [&] { pages.between_pools(stream); },
      [&] { copy(pages.to(), pages.from(), pages.bytes(), stream); });
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t count = argc > 1 ? std::atoll(argv[1]) : 1024;
  const auto owner = cuda_memory::make_stream(0);
  auto* const stream = static_cast<cudaStream_t>(owner.get());
  {
    Pages pages(count, 0);
    measure_between_pools("device to device", pages, stream);
    measure(
        "device to host tier", pages.bytes(), stream, [&] { pages.store(stream); },
        [&] { copy(pages.images(), pages.from(), pages.bytes(), stream); });
    measure(
        "host tier to device", pages.bytes(), stream, [&] { pages.load(stream); },
        [&] { copy(pages.to(), pages.images(), pages.bytes(), stream); });
  }
  if (cuda_memory::device_count() < 2 || !cuda_memory::enable_peer_access(0, 1)) return 0;
  Pages pages(count, 1);
  measure_between_pools("from another GPU", pages, stream);
  return 0;
}
