// The bare gather reads every unit of the listed pages once, and nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "core/cuda/check.hpp"
#include "kvmesh/device_memory.hpp"
#include "launch/bench/gpu_gather.hpp"
#include "tests/gpu/gpu_support.hpp"

namespace kvmesh::test {
namespace {

constexpr Device kDevice{DeviceKind::kCuda, 0};
constexpr std::int64_t kPages = 600, kHeads = 3;

using Words = std::vector<std::uint32_t>;

struct Plane {
  Plane(std::int64_t page_size, std::int64_t dim, std::mt19937& random)
      : words(static_cast<std::size_t>(kPages * kHeads * page_size * dim / 2)),
        memory(kDevice, words.size() * 4),
        view(memory.data(), Dtype::kBFloat16, {kPages, kHeads, page_size, dim}, kDevice) {
    std::ranges::generate(words, std::ref(random));
    check(cudaMemcpy(memory.data(), words.data(), words.size() * 4, cudaMemcpyHostToDevice));
  }

  /// The words of the first `tokens` tokens of a page, all heads.
  std::uint32_t folded(std::int64_t page, std::int64_t tokens) const {
    std::uint32_t sum = 0;
    const std::int64_t row = view.size(3) / 2, head = view.size(2) * row;
    for (std::int64_t h = 0; h < kHeads; ++h) {
      const auto first = words.begin() + (page * kHeads + h) * head;
      sum = std::accumulate(first, first + tokens * row, sum, std::bit_xor());
    }
    return sum;
  }

  Words words;
  DeviceMemory memory;
  TensorView view;
};

struct Case {
  std::int64_t page_size, k_dim, v_dim;
  bool latent = false;  // values are part of the keys
};

void expect_sum(const Case& shape, int blocks) {
  std::mt19937 random(7);
  const Plane k(shape.page_size, shape.k_dim, random), v(shape.page_size, shape.v_dim, random);
  TensorView values = shape.latent ? k.view : v.view;
  values.shape[3] = shape.v_dim;
  std::vector<std::int32_t> pages(kPages);
  std::iota(pages.begin(), pages.end(), 0);
  std::ranges::shuffle(pages, random);
  bench::PageReads reads{.pools = {{k.view, values}}};
  std::uint32_t expected = 0;
  for (const std::int64_t count : {1, 150, 77}) {
    const auto last = static_cast<std::int64_t>(random() % shape.page_size + 1);
    bench::PageReads::Sequence sequence{.tokens = (count - 1) * shape.page_size + last};
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t tokens = i + 1 < count ? shape.page_size : last;
      sequence.pages.push_back(pages.back());
      expected ^= k.folded(pages.back(), tokens);
      if (!shape.latent) expected ^= v.folded(pages.back(), tokens);
      pages.pop_back();
    }
    reads.sequences.push_back(std::move(sequence));
  }
  const Words q{1, 2, 4, 8, 16, 32, 64, 128};
  expected ^= 255;
  const DeviceMemory rows(kDevice, 32), out(kDevice, 64);
  check(cudaMemcpy(rows.data(), q.data(), 32, cudaMemcpyHostToDevice));
  check(cudaMemset(out.data(), 0xFF, 64));
  reads.q = TensorView(rows.data(), Dtype::kFloat32, {1, 1, 8}, kDevice);
  reads.out = {TensorView(out.data(), Dtype::kFloat32, {1, 1, 16}, kDevice)};

  const Stream stream;
  const bench::GpuGather gather(reads, kDevice, 132, stream);
  // Three times: the counters are zero again after each. What is read thrice is there once.
  for (int call = 0; call < 3; ++call) gather.enqueue(call, blocks, stream);
  EXPECT_EQ(gather.sum(stream), expected);
  Words written(16, 1);
  check(cudaMemcpy(written.data(), out.data(), 64, cudaMemcpyDeviceToHost));
  EXPECT_EQ(written, Words(16, 0));
}

TEST(Gather, ReadsEveryUnitOnce) {
  for (const Case& shape : {Case{16, 128, 128}, Case{16, 96, 64}, Case{1, 128, 128},
                            Case{64, 256, 256}, Case{5, 8, 24}, Case{64, 576, 512, true}}) {
    for (const int blocks : {1, 7, 396}) {
      SCOPED_TRACE(::testing::Message() << "page " << shape.page_size << ", dims " << shape.k_dim
                                        << " and " << shape.v_dim << ", " << blocks << " blocks");
      expect_sum(shape, blocks);
    }
  }
}

TEST(Gather, TakesOnlyRowsOfWholeUnits) {
  const auto pool = [](std::int64_t dim) {
    return TensorView(nullptr, Dtype::kBFloat16, {2, 3, 16, dim}, kDevice);
  };
  EXPECT_TRUE(bench::can_gather({pool(8), pool(96)}));
  EXPECT_FALSE(bench::can_gather({pool(8), pool(12)}));
  EXPECT_FALSE(bench::can_gather({pool(8), pool(std::int64_t{1} << 30)}));
  TensorView tokens_first = pool(8);
  std::swap(tokens_first.strides[1], tokens_first.strides[2]);
  EXPECT_FALSE(bench::can_gather({tokens_first, pool(8)}));
}

}  // namespace
}  // namespace kvmesh::test
