// Rows of a rank's pages, brought together by several threads.
#include "runtime/streams/row_threads.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

constexpr std::byte kPoison{0xEE};

/// Rows of any width, apart from one another, at both ends.
struct ScatteredRows {
  ScatteredRows(Random& random, std::size_t places, std::size_t row_heads, std::int64_t most_bytes)
      : heads(row_heads) {
    std::vector<std::size_t> begins;
    std::size_t pages_bytes = 0, packed_bytes = 0;
    for (std::size_t i = 0; i < places; ++i) {
      const auto width = static_cast<std::size_t>(random.integer(1, most_bytes));
      const std::size_t pitch = width + static_cast<std::size_t>(random.integer(0, 64));
      begins.push_back(pages_bytes);
      from.push_back({nullptr, pitch});
      to.push_back({nullptr, width});
      pages_bytes += heads * pitch;
      packed_bytes += heads * width;
    }
    pages.resize(pages_bytes);
    for (std::byte& byte : pages) byte = static_cast<std::byte>(random.integer(0, 255));
    packed.assign(packed_bytes, kPoison);
    std::byte* next = packed.data();
    for (std::size_t i = 0; i < places; ++i) {
      from[i].data = pages.data() + begins[i];
      to[i].data = next;
      next += heads * to[i].pitch;
    }
  }

  std::vector<std::byte> expected() const {
    std::vector<std::byte> all;
    for (std::size_t i = 0; i < from.size(); ++i)
      for (std::size_t head = 0; head < heads; ++head) {
        const std::byte* const row = from[i].data + head * from[i].pitch;
        all.insert(all.end(), row, row + to[i].pitch);
      }
    return all;
  }

  std::size_t heads;
  std::vector<RowPlace> from, to;
  std::vector<std::byte> pages, packed;
};

TEST(RowThreads, PackEveryRowOnce) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  Random random(seed);
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    RowThreads rows(pool);
    // From less than one thread takes at a time to more than is written through caches.
    for (const std::int64_t most_bytes : {1, 300, 20'000, 120'000}) {
      ScatteredRows scattered(random, 17, 5, most_bytes);
      rows.pack(scattered.from, scattered.to, scattered.heads);
      EXPECT_TRUE(scattered.packed == scattered.expected())
          << threads << " threads, rows of up to " << most_bytes << " bytes";
    }
    rows.pack({}, {}, 5);
  }
}

}  // namespace
}  // namespace kvmesh::test
