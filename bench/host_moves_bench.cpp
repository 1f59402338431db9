// Measures moves of pages on CPUs beside a plain copy of as many bytes by one thread, turn by turn
// in one run: the copies alone, within pools and to and from images as in a host tier; and
// KvCache::rebalance between two ranks that are threads, of which one copies.
//
//   host_moves_bench [pages]       each page has 1 MiB: 16 layers of 2 planes, 8 heads, 16 tokens,
//                                  256 bytes
//
// Pages and images lie in random order, as after a while of serving, in memory that was written
// before. Gigabytes per second, counted once; the median of the turns, and of their ratios.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <vector>

#include "bench/shuffled_moves.hpp"
#include "core/aligned_buffer.hpp"
#include "core/page_moves.hpp"
#include "kvmesh/kv_cache.hpp"

namespace {

using namespace kvmesh;
using namespace kvmesh::bench;

constexpr int kTurns = 15, kLayers = 16;
constexpr PageShape kPage{.planes = 2 * kLayers};
constexpr int kHeads = PageShape::kHeads, kPageSize = PageShape::kTokens, kRow = PageShape::kRow;
constexpr std::int64_t kPageBytes = kPage.bytes();

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

AlignedBuffer written(std::int64_t bytes) {
  AlignedBuffer buffer(static_cast<std::size_t>(bytes));
  std::memset(buffer.data(), 1, buffer.size_bytes());
  return buffer;
}

/// Beside a plain copy of `bytes`, which runs before each turn.
class Turns {
 public:
  explicit Turns(std::int64_t bytes) : bytes_(bytes), from_(written(bytes)), to_(written(bytes)) {}

  void measure(
      const char* name, const std::function<void()>& moves,
      const std::function<void()>& before = [] {}) {
    std::vector<double> of_moves, of_plain, shares;
    for (int turn = -1; turn < kTurns; ++turn) {
      before();
      const double plain =
          seconds([&] { std::memcpy(to_.data(), from_.data(), to_.size_bytes()); });
      const double mine = seconds(moves);
      if (turn < 0) continue;
      of_moves.push_back(mine);
      of_plain.push_back(plain);
      shares.push_back(plain / mine);
    }
    std::ranges::sort(shares);
    const auto rate = [&](const std::vector<double>& all) {
      return static_cast<double>(bytes_) / median(all) / 1e9;
    };
    std::printf("%-16s %6.2f GB/s   plain copy %6.2f GB/s   share %.2f (p10-p90 %.2f-%.2f)\n", name,
                rate(of_moves), rate(of_plain), median(shares), shares[kTurns / 10],
                shares[kTurns - 1 - kTurns / 10]);
  }

 private:
  std::int64_t bytes_;
  AlignedBuffer from_, to_;
};

/// Two pools, and images.
class Pages {
 public:
  explicit Pages(std::int64_t pages)
      : from_(written(pages * kPageBytes)),
        to_(written(pages * kPageBytes)),
        images_(written(pages * kPageBytes)),
        moves_(kPage, pages, static_cast<std::byte*>(images_.data())) {}

  void move(bool has_source, bool has_destination) {
    const auto bytes = [](const AlignedBuffer& pool) {
      return static_cast<std::byte*>(pool.data());
    };
    move_pages(moves_.between(has_source ? bytes(from_) : nullptr,
                              has_destination ? bytes(to_) : nullptr));
  }

 private:
  AlignedBuffer from_, to_, images_;
  ShuffledMoves moves_;
};

/// A cache of two ranks, with one sequence whose pages all begin on rank 0.
class Uneven {
 public:
  Uneven(Mesh& mesh, std::int64_t pages)
      : mesh_(mesh),
        cache_(mesh, {.layers = kLayers,
                      .q_heads = kHeads,
                      .kv_heads = kHeads,
                      .k_dim = kRow / 2,
                      .page_size = kPageSize,
                      .pages_per_rank = pages + 2,
                      .placement = Placement::kPacked}),
        tokens_(pages * kPageSize),
        rows_(static_cast<std::size_t>(tokens_ * kHeads * kRow / 2), 1) {}

  void fill() {
    if (sequence_) cache_.erase(*sequence_);
    sequence_ = cache_.create();
    const ConstTensorView rows(rows_.data(), Dtype::kBFloat16, {tokens_, kHeads, kRow / 2});
    StepPlan plan = cache_.plan({{*sequence_, tokens_, 0}});
    for (int layer = 0; layer < kLayers; ++layer) plan.append(layer, rows, rows);
    barrier(mesh_.world());
  }
  void rebalance() { cache_.rebalance(tokens_ / kPageSize); }

 private:
  Mesh& mesh_;
  KvCache cache_;
  std::int64_t tokens_;
  std::vector<std::uint16_t> rows_;
  std::optional<SequenceId> sequence_;
};

/// Rank 1 copies half of the pages.
void measure_rebalance(Mesh& mesh, std::int64_t pages) {
  Uneven uneven(mesh, 2 * pages);
  if (mesh.rank().value == 1) {
    Turns(pages * kPageBytes)
        .measure(
            "rebalance", [&] { uneven.rebalance(); }, [&] { uneven.fill(); });
    return;
  }
  for (int turn = -1; turn < kTurns; ++turn) {
    uneven.fill();
    uneven.rebalance();
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t pages = argc > 1 ? std::atoll(argv[1]) : 128;
  {
    Pages of_copies(pages);
    Turns turns(pages * kPageBytes);
    turns.measure("pool to pool", [&] { of_copies.move(true, true); });
    turns.measure("pool to images", [&] { of_copies.move(true, false); });
    turns.measure("images to pool", [&] { of_copies.move(false, true); });
  }
  run_on_threads(2, [&](Mesh& mesh) { measure_rebalance(mesh, pages); },
                 {.threads = 1, .device = DeviceChoice::kCpu});
}
