// How close attention comes to what the machine can do.
//
// Decode reads every key and value once and hardly computes, so it is measured against memory: the
// same threads read a plain buffer and attend over pages, in turn, and the table shows both rates
// and their share. Each turn works on another copy of the data, 1.1 GiB in all, so that no cache
// serves either. Rates count K and V once (decode), two operations a multiply-add of the visible
// half (prefill), bytes written (append), bytes read and written (copy).
//
//   attention_bench [threads]
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/aligned_buffer.hpp"
#include "core/half.hpp"
#include "kvmesh/attention.hpp"

namespace {

using namespace kvmesh;

constexpr AttentionShape kShape{
    .q_heads = 32, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .page_size = 16};
constexpr std::int64_t kDecodeKeys = 32768, kPrefillTokens = 2048;
constexpr std::int64_t kCopies = 9, kPagesPerCopy = kDecodeKeys / 16;
constexpr std::int64_t kPages = kCopies * kPagesPerCopy;
constexpr std::int64_t kTokenBytes = 2 * 8 * 128 * 2;  // K and V of all heads, bf16
constexpr std::int64_t kCopyBytes = kDecodeKeys * kTokenBytes;

double seconds(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Rates of one kind of work, one a turn.
struct Rates {
  std::string name, unit;
  std::vector<double> values{};

  void add(double amount, double time) { values.push_back(amount / time / 1e9); }
  double median() const {
    std::vector<double> sorted = values;
    std::ranges::sort(sorted);
    return sorted[sorted.size() / 2];
  }
  void print() const {
    const auto [low, high] = std::ranges::minmax(values);
    fmt::print("{:<44} {:>8.2f} {:<8} ({:.2f} to {:.2f}, {} runs)\n", name, median(), unit, low,
               high, values.size());
  }
};

/// K and V pages of all copies, and their page numbers in random order.
class Pool {
 public:
  explicit Pool(ThreadPool& threads) : k_(bytes()), v_(bytes()), order_(kPages) {
    const std::uint16_t one = float_to_bfloat16(1.0f);
    threads.for_each(kPages, [&](std::int64_t page, int) {
      for (AlignedBuffer* half : {&k_, &v_}) {
        auto* data = static_cast<std::uint16_t*>(half->data()) + page * kPageElements;
        // Numbers in [1, 2) and their negatives, all different.
        for (std::int64_t i = 0; i < kPageElements; ++i) {
          const auto bits = static_cast<std::uint16_t>((page * 31 + i * 7919) & 0x807F);
          data[i] = static_cast<std::uint16_t>(one | bits);
        }
      }
    });
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), std::mt19937_64(1));
  }

  KvPool view() const {
    auto half = [](void* data) {
      return TensorView(data, Dtype::kBFloat16,
                        {kPages, kShape.kv_heads, kShape.page_size, kShape.k_dim});
    };
    return {half(k_.data()), half(v_.data())};
  }

  /// One sequence on the pages of copy `copy`.
  AttentionBatch sequence(std::int64_t copy, std::int64_t q_len, std::int64_t kv_len) const {
    AttentionBatch batch{.q_indptr = {0, q_len},
                         .kv_lens = {kv_len},
                         .q_positions = {},
                         .page_indptr = {0},
                         .pages = {}};
    for (std::int64_t i = 0; i * kShape.page_size < kv_len; ++i) {
      batch.pages.push_back({page(copy, i), static_cast<std::int32_t>(i)});
    }
    batch.page_indptr.push_back(std::ssize(batch.pages));
    return batch;
  }
  std::int32_t page(std::int64_t copy, std::int64_t i) const {
    return order_[static_cast<std::size_t>(copy * kPagesPerCopy + i)];
  }

 private:
  static constexpr std::int64_t kPageElements = 8 * 16 * 128;
  static constexpr std::size_t bytes() { return kPages * kPageElements * sizeof(std::uint16_t); }

  AlignedBuffer k_, v_;
  std::vector<std::int32_t> order_;
};

/// Queries in, partial out.
struct Rows {
  explicit Rows(std::int64_t tokens)
      : q(static_cast<std::size_t>(tokens * kShape.q_heads * kShape.k_dim)),
        o(q.size()),
        lse(static_cast<std::size_t>(tokens * kShape.q_heads)),
        tokens(tokens) {
    for (std::size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(i));
  }
  ConstTensorView queries() { return tensor(q.data(), {tokens, kShape.q_heads, kShape.k_dim}); }
  Partial partial() {
    return {tensor(o.data(), {tokens, kShape.q_heads, kShape.v_dim}),
            tensor(lse.data(), {tokens, kShape.q_heads})};
  }
  std::vector<float> q, o, lse;
  std::int64_t tokens;
};

/// As much plain memory as the copies have, read 64 bytes a step.
class PlainMemory {
 public:
  PlainMemory() : buffer_(kCopies * kCopyBytes) {
    std::fill_n(words(), buffer_.size_bytes() / 8, std::uint64_t{1});
  }
  /// Reads copy `copy`, cut evenly over the threads.
  std::uint64_t read(std::int64_t copy, ThreadPool& threads) const {
    const std::int64_t count = kCopyBytes / 8 / threads.threads();
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads.threads()) * 8);
    threads.for_each(threads.threads(), [&](std::int64_t part, int) {
      const std::uint64_t* from = words() + copy * kCopyBytes / 8 + part * count;
      std::uint64_t sum[8] = {};
      for (std::int64_t i = 0; i + 8 <= count; i += 8) {
        for (int lane = 0; lane < 8; ++lane) sum[lane] += from[i + lane];
      }
      std::copy(sum, sum + 8, sums.begin() + part * 8);
    });
    return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
  }

 private:
  std::uint64_t* words() const { return static_cast<std::uint64_t*>(buffer_.data()); }
  AlignedBuffer buffer_;
};

void measure_decode(const Pool& pool, ThreadPool& threads) {
  const PlainMemory memory;
  std::vector<AttentionPlan> plans;
  for (std::int64_t copy = 0; copy < kCopies; ++copy) {
    plans.emplace_back(kShape, pool.sequence(copy, 1, kDecodeKeys),
                       AttentionOptions{.mask = mods::causal()});
  }
  const ConstKvPool pages{pool.view().k, pool.view().v};
  Rows rows(1);
  Rates read{"plain read", "GB/s"}, decode{"decode, 1 x 32768, 32/8 heads, dim 128, bf16", "GB/s"};
  Rates share{"  share of the plain read beside it", ""};
  for (std::int64_t turn = 0; turn < 4 * kCopies; ++turn) {
    const auto copy = turn % kCopies;
    std::uint64_t sum = 0;
    const double read_time = seconds([&] { sum = memory.read(copy, threads); });
    if (sum != kCopyBytes / 8) std::abort();
    const double decode_time = seconds([&] {
      plans[static_cast<std::size_t>(copy)].attend_partial(rows.queries(), pages, rows.partial(),
                                                           threads);
    });
    if (turn < kCopies) continue;  // pages and scratch are touched for the first time
    read.add(kCopyBytes, read_time);
    decode.add(kCopyBytes, decode_time);
    share.values.push_back(read_time / decode_time);
  }
  read.print();
  decode.print();
  share.print();
}

void measure_prefill(const Pool& pool, ThreadPool& threads) {
  AttentionPlan plan(kShape, pool.sequence(0, kPrefillTokens, kPrefillTokens),
                     {.mask = mods::causal()});
  const ConstKvPool pages{pool.view().k, pool.view().v};
  Rows rows(kPrefillTokens);
  const double pairs = double(kPrefillTokens) * double(kPrefillTokens + 1) / 2;
  const double flops = pairs * kShape.q_heads * 2 * (kShape.k_dim + kShape.v_dim);
  Rates rates{"prefill, 1 x 2048 causal, 32/8 heads, bf16", "GFLOP/s"};
  for (int run = 0; run < 5; ++run) {
    const double time =
        seconds([&] { plan.attend_partial(rows.queries(), pages, rows.partial(), threads); });
    if (run > 0) rates.add(flops, time);
  }
  rates.print();
}

void measure_append(const Pool& pool, ThreadPool& threads, std::int64_t tokens, const char* name) {
  std::vector<float> fresh(static_cast<std::size_t>(tokens * kShape.kv_heads * kShape.k_dim), 1.5f);
  const ConstTensorView rows =
      tensor(std::as_const(fresh).data(), {tokens, kShape.kv_heads, kShape.k_dim});
  Rates rates{name, "GB/s"};
  for (std::int64_t copy = 0; copy < kCopies; ++copy) {
    std::vector<TokenSlot> slots;
    for (std::int64_t t = 0; t < tokens; ++t) {
      slots.push_back(
          {pool.page(copy, t / kShape.page_size), static_cast<std::int32_t>(t % kShape.page_size)});
    }
    rates.add(static_cast<double>(tokens * kTokenBytes),
              seconds([&] { append(pool.view(), rows, rows, slots, threads); }));
  }
  rates.print();
}

void measure_copy(const Pool& pool) {
  Rates rates{"copy_pages, 1024 pages", "GB/s"};
  for (std::int64_t copy = 0; copy < kCopies; ++copy) {
    std::vector<LocalPageCopy> copies;
    for (std::int64_t i = 0; i < 1024; ++i) {
      copies.push_back({pool.page(copy, i), pool.page(copy, 1024 + i), kShape.page_size});
    }
    rates.add(2.0 * 1024 * 16 * kTokenBytes, seconds([&] { copy_pages(pool.view(), copies); }));
  }
  rates.print();
}

}  // namespace

int main(int argc, char** argv) {
  const int count =
      argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  ThreadPool threads(std::max(count, 1));
  fmt::print("{} threads, median (range)\n", threads.threads());
  const Pool pool(threads);
  measure_decode(pool, threads);
  measure_prefill(pool, threads);
  measure_append(pool, threads, 64, "append, 64 tokens, float32 to bf16");
  measure_append(pool, threads, 4096, "append, 4096 tokens, float32 to bf16");
  measure_copy(pool);
}
