// Moves of pages on the device leave the same bytes as on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "core/cuda/device_buffer.hpp"
#include "kernels/cuda/pool/page_copier.hpp"
#include "tests/gpu/gpu_support.hpp"

namespace kvmesh::test {
namespace {

/// Half of the pages are read, the others are written.
struct Sizes {
  std::int64_t pages, heads, page_size;
  std::vector<std::int64_t> rows;  // bytes of a row, of each plane
};

/// The bytes of all planes, and the same on the device.
class Pools {
 public:
  Pools(const Sizes& sizes, unsigned seed) : sizes_(sizes) {
    std::size_t bytes = 0;
    for (const std::int64_t row : sizes.rows) {
      offsets_.push_back(bytes);
      bytes += static_cast<std::size_t>(sizes.pages * sizes.heads * sizes.page_size * row);
      bytes = (bytes + 255) / 256 * 256;
    }
    std::mt19937_64 random(seed);
    std::vector<std::uint64_t> words(bytes / sizeof(std::uint64_t));
    std::ranges::generate(words, random);
    const auto of_words = std::as_bytes(std::span(words));
    host_.assign(of_words.begin(), of_words.end());
    device_ = cuda::upload(std::span<const std::byte>(host_));
  }

  std::byte* plane(std::size_t plane, bool on_device) {
    return (on_device ? device_.as<std::byte>() : host_.data()) + offsets_[plane];
  }
  void expect_equal() const {
    std::vector<std::byte> found(host_.size());
    check(cudaMemcpy(found.data(), device_.data(), found.size(), cudaMemcpyDeviceToHost));
    EXPECT_TRUE(found == host_);
  }
  std::int64_t token_bytes() const {
    return sizes_.heads * std::accumulate(sizes_.rows.begin(), sizes_.rows.end(), std::int64_t{0});
  }

 private:
  Sizes sizes_;
  std::vector<std::size_t> offsets_;
  std::vector<std::byte> host_;
  cuda::DeviceBuffer device_;
};

std::vector<MovedPlane> planes_of(const Sizes& sizes, Pools* from, Pools* to, bool on_device) {
  std::vector<MovedPlane> planes;
  std::int64_t before = 0;
  for (std::size_t i = 0; i < sizes.rows.size(); ++i) {
    planes.push_back({from ? from->plane(i, on_device) : nullptr,
                      to ? to->plane(i, on_device) : nullptr, sizes.rows[i], before});
    before += sizes.heads * sizes.rows[i];
  }
  return planes;
}

class Case {
 public:
  explicit Case(const Sizes& sizes) : sizes_(sizes), from_(sizes, 1), to_(sizes, 2) {}

  void between_pools(std::span<const PageMove> moves, const Stream& stream) {
    run(moves, &from_, &to_, {}, {}, false, stream);
    to_.expect_equal();
  }
  /// Images lie `gap` bytes apart, so that they are several copies, and back.
  void packed(std::span<const PageMove> moves, std::size_t gap, const Stream& stream) {
    std::vector<std::byte> expected, found;
    std::vector<std::size_t> at;
    std::size_t bytes = 0;
    for (const PageMove& move : moves) {
      at.push_back(bytes);
      bytes += static_cast<std::size_t>(move.tokens * from_.token_bytes()) + gap;
    }
    expected.resize(bytes + 1);
    found.resize(bytes + 1);
    std::vector<std::byte*> host, device;
    for (const std::size_t place : at) {
      host.push_back(expected.data() + place);
      device.push_back(found.data() + place);
    }
    run(moves, &from_, nullptr, host, device, true, stream);
    EXPECT_TRUE(found == expected);
    run(moves, nullptr, &to_, host, device, false, stream);
    to_.expect_equal();
  }

 private:
  void run(std::span<const PageMove> moves, Pools* from, Pools* to,
           std::span<std::byte* const> host, std::span<std::byte* const> device, bool packs,
           const Stream& stream) {
    const auto here = planes_of(sizes_, from, to, false), there = planes_of(sizes_, from, to, true);
    PageMoves all{.planes = here,
                  .heads = sizes_.heads,
                  .page_size = sizes_.page_size,
                  .token_bytes = from_.token_bytes(),
                  .moves = moves,
                  .packed = host,
                  .packs = packs};
    move_pages(all);
    all.planes = there;
    all.packed = device;
    ASSERT_TRUE(copier_.is_ready());
    copier_.move(all, stream);
    stream.wait();
  }

  Sizes sizes_;
  Pools from_, to_;
  cuda::PageCopier copier_;
};

/// Whole pages, and some tokens of pages from and to other places in them.
std::vector<PageMove> some_moves(const Sizes& sizes) {
  const auto size = static_cast<std::int32_t>(sizes.page_size);
  std::vector<PageMove> moves;
  const auto half = static_cast<std::int32_t>(sizes.pages / 2);
  for (std::int32_t i = 0; i < half; ++i) {
    PageMove move{.source = i * 5 % half, .destination = half + i, .tokens = size};
    if (i % 3 == 1) move.tokens = 1 + i % size;
    if (i % 3 == 2) {
      move.tokens = size - size / 2;
      move.source_token = size / 2;
      move.destination_token = i % 2 == 0 ? 0 : size / 2;
    }
    moves.push_back(move);
  }
  return moves;
}

TEST(PageCopierOnDevice, EqualsTheCpu) {
  const Stream stream;
  for (const Sizes& sizes :
       {Sizes{24, 8, 16, {256, 256}}, Sizes{24, 3, 4, {24, 10, 4}}, Sizes{24, 1, 1, {33}},
        Sizes{24, 1, 1, {300'000, 12}}, Sizes{24, 2, 16, {128, 4, 128, 4}}}) {
    SCOPED_TRACE(sizes.rows.size());
    Case one(sizes);
    const std::vector<PageMove> moves = some_moves(sizes);
    one.between_pools(moves, stream);
    one.packed(moves, 0, stream);
    one.packed(moves, 7, stream);
    one.between_pools({}, stream);
  }
}

// 12 pages of 4 MiB, in a buffer of 16 MiB; and a page that is larger than the buffer.
TEST(PageCopierOnDevice, MovesMoreThanItsBufferHolds) {
  const Stream stream;
  for (const Sizes& sizes : {Sizes{24, 8, 16, std::vector<std::int64_t>(64, 512)},
                             Sizes{2, 16, 64, std::vector<std::int64_t>(5, 4096)}}) {
    Case large(sizes);
    large.packed(some_moves(sizes), 0, stream);
    large.packed(some_moves(sizes), 16, stream);
  }
}

// Lists of several calls are on their way at once.
TEST(PageCopierOnDevice, KeepsTheListsOfCallsThatAreOnTheirWay) {
  const Sizes sizes{24, 4, 16, {256, 64}};
  const Stream stream;
  Pools from(sizes, 3), to(sizes, 4);
  cuda::PageCopier copier;
  for (std::int32_t i = 0; i < 12; ++i) {
    const PageMove move{.source = i, .destination = 12 + i, .tokens = 16};
    const auto here = planes_of(sizes, &from, &to, false);
    const auto there = planes_of(sizes, &from, &to, true);
    PageMoves all{
        .planes = here, .heads = 4, .page_size = 16, .token_bytes = 4 * 320, .moves = {&move, 1}};
    move_pages(all);
    all.planes = there;
    copier.move(all, stream);
  }
  stream.wait();
  to.expect_equal();
}

}  // namespace
}  // namespace kvmesh::test
