// The pools of a cache over any ranks: their size, and the ranks that read those of others.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "core/posix/free_memory.hpp"
#include "core/posix/shared_memory.hpp"
#include "kvmesh/device_memory.hpp"
#include "tests/contracts/places.hpp"

namespace kvmesh::test {

inline constexpr int kPoolLayers = 3;

/// Has no amount of memory yet.
inline CacheOptions unsized_cache() {
  return {.layers = kPoolLayers,
          .q_heads = 4,
          .kv_heads = 4,
          .k_dim = 8,
          .v_dim = 6,
          .page_size = 4,
          .dtype = Dtype::kFloat32};
}
inline CacheOptions cache_of_bytes(std::int64_t bytes) {
  CacheOptions options = unsized_cache();
  options.bytes = bytes;
  return options;
}

/// Bytes of one rank and all layers, with `head_parallel` 1; and the most that alignment may add to
/// a pool.
inline constexpr std::int64_t kBytesOfPage = kPoolLayers * 4 * 4 * (8 + 6) * 4;
inline constexpr std::int64_t kMostPadding = kPoolLayers * 2 * 255;

inline std::int64_t granule(Mesh& mesh) {
  return static_cast<std::int64_t>(SharedMemory::granule(mesh.device()));
}

/// Element `i` of one half of a layer of a rank: no two elements are equal.
inline float pattern(int rank, int layer, bool is_value, std::int64_t i) {
  return static_cast<float>(((rank * kPoolLayers + layer) * 2 + is_value) * 4096 + i % 4093);
}

inline void fill(Mesh& mesh, KvCache& cache) {
  for (int layer = 0; layer < kPoolLayers; ++layer) {
    const KvPool pool = cache.pool(layer);
    for (bool is_value : {false, true}) {
      const TensorView& half = is_value ? pool.v : pool.k;
      std::vector<float> numbers(static_cast<std::size_t>(half.elements()));
      for (std::size_t i = 0; i < numbers.size(); ++i) {
        numbers[i] = pattern(mesh.rank().value, layer, is_value, static_cast<std::int64_t>(i));
      }
      copy_bytes(half.data, numbers.data(), numbers.size() * sizeof(float));
    }
  }
}

/// Expects the numbers that `fill` wrote on the world's rank `rank`.
inline void expect_filled(int rank, int layer, const ConstKvPool& pool) {
  for (bool is_value : {false, true}) {
    const ConstTensorView& half = is_value ? pool.v : pool.k;
    std::vector<float> numbers(static_cast<std::size_t>(half.elements()));
    copy_bytes(numbers.data(), half.data, numbers.size() * sizeof(float));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      ASSERT_EQ(numbers[i], pattern(rank, layer, is_value, static_cast<std::int64_t>(i)))
          << "rank " << rank << ", layer " << layer << ", element " << i;
    }
  }
}

template <class Place>
class PoolsContract : public testing::Test {
 protected:
  static void on_ranks(const std::function<void(Mesh&)>& body, int head_parallel = 1) {
    Place::run([&](Communicator& comm) {
      if (comm.size() % head_parallel != 0) return;
      Mesh mesh(comm, {.head_parallel = head_parallel, .threads = 1, .device = Place::kDevice});
      body(mesh);
    });
  }
};
TYPED_TEST_SUITE_P(PoolsContract);

TYPED_TEST_P(PoolsContract, EveryRankReadsThePoolsOfItsHeads) {
  for (int head_parallel : {1, 2}) {
    this->on_ranks(
        [&](Mesh& mesh) {
          KvCache cache(mesh, cache_of_bytes(3 * granule(mesh) + 77));
          fill(mesh, cache);
          barrier(mesh.world());
          for (int kv_rank = 0; kv_rank < mesh.kv_parallel(); ++kv_rank) {
            for (int layer = 0; layer < kPoolLayers; ++layer) {
              const std::optional<ConstKvPool> pool = cache.peer_pool(Rank{kv_rank}, layer);
              ASSERT_TRUE(pool.has_value()) << "rank " << kv_rank << " is not mapped";
              expect_filled(kv_rank * head_parallel + mesh.head_rank(), layer, *pool);
            }
          }
          EXPECT_EQ(cache.peer_pool(mesh.kv_rank(), 1)->v.data, cache.pool(1).v.data);
          barrier(mesh.world());
        },
        head_parallel);
  }
}

/// A number for each plane of each layer of each rank.
inline std::byte plane_stamp(int rank, int layer, int plane) {
  return static_cast<std::byte>(1 + (rank * kPoolLayers + layer) * 4 + plane);
}

/// Expects only the stamp of plane `plane` in the first bytes of `view`.
inline void expect_stamped(const ConstTensorView& view, int rank, int layer, int plane) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(view.elements()) * size_bytes(view.dtype));
  ASSERT_FALSE(bytes.empty());
  copy_bytes(bytes.data(), view.data, bytes.size());
  EXPECT_EQ(std::ranges::count(bytes, plane_stamp(rank, layer, plane)), std::ssize(bytes))
      << "rank " << rank << ", layer " << layer << ", plane " << plane;
}

TYPED_TEST_P(PoolsContract, PeersSeeThePlanesOfEveryFormat) {
  for (const PageKind kind : {PageKind::kKv, PageKind::kLatent}) {
    for (const Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat8E4M3}) {
      this->on_ranks([&](Mesh& mesh) {
        CacheOptions options = unsized_cache();
        options.pages_per_rank = 5;
        options.page_kind = kind;
        options.dtype = dtype;
        KvCache cache(mesh, options);
        for (int layer = 0; layer < kPoolLayers; ++layer) {
          int number = 0;
          for (const TensorView& plane : cache.planes(layer)) {
            const std::vector<std::byte> bytes(
                static_cast<std::size_t>(plane.elements()) * size_bytes(plane.dtype),
                plane_stamp(mesh.rank().value, layer, number++));
            copy_bytes(plane.data, bytes.data(), bytes.size());
          }
        }
        barrier(mesh.world());
        const bool has_values = kind == PageKind::kKv;
        for (int rank = 0; rank < mesh.kv_parallel(); ++rank) {
          const ConstKvPool pool = cache.peer_pool(Rank{rank}, 2).value();
          expect_stamped(pool.k, rank, 2, 0);
          expect_stamped(pool.v, rank, 2, has_values ? 1 : 0);
          EXPECT_EQ(pool.k_scale.per_token.empty(), dtype != Dtype::kFloat8E4M3);
          if (pool.k_scale.per_token.empty()) continue;
          expect_stamped(pool.k_scale.per_token, rank, 2, has_values ? 2 : 1);
          expect_stamped(pool.v_scale.per_token, rank, 2, has_values ? 3 : 1);
        }
        barrier(mesh.world());
      });
    }
  }
}

TYPED_TEST_P(PoolsContract, ReadersSeeLaterWrites) {
  this->on_ranks([](Mesh& mesh) {
    KvCache cache(mesh, cache_of_bytes(granule(mesh)));
    const Rank next{(mesh.kv_rank().value + 1) % mesh.kv_parallel()};
    for (float number : {1.5f, 2.5f}) {
      const float mine = number + static_cast<float>(mesh.kv_rank().value);
      copy_bytes(cache.pool(2).k.data, &mine, sizeof mine);
      barrier(mesh.world());
      float seen = 0;
      copy_bytes(&seen, cache.peer_pool(next, 2)->k.data, sizeof seen);
      EXPECT_EQ(seen, number + static_cast<float>(next.value));
      barrier(mesh.world());
    }
  });
}

TYPED_TEST_P(PoolsContract, RejectsPoolsOfRanksOutOfRange) {
  this->on_ranks([](Mesh& mesh) {
    KvCache cache(mesh, cache_of_bytes(granule(mesh)));
    for (int rank : {-1, mesh.kv_parallel()}) {
      EXPECT_THROW((void)cache.peer_pool(Rank{rank}, 0), InvalidArgument);
    }
    for (int layer : {-1, kPoolLayers}) {
      EXPECT_THROW((void)cache.peer_pool(Rank{0}, layer), InvalidArgument);
    }
    barrier(mesh.world());
  });
}

TYPED_TEST_P(PoolsContract, UsesByteBudget) {
  this->on_ranks([](Mesh& mesh) {
    for (std::int64_t extra : {std::int64_t{0}, std::int64_t{1234}, granule(mesh) - 1}) {
      const std::int64_t bytes = 5 * granule(mesh) + extra;
      KvCache cache(mesh, cache_of_bytes(bytes));
      const CacheOptions& options = cache.options();
      EXPECT_LE(cache.pool_bytes(), bytes);
      EXPECT_LE(options.pages_per_rank * kBytesOfPage, cache.pool_bytes());
      EXPECT_GT((options.pages_per_rank + 1) * kBytesOfPage + kMostPadding, bytes - extra);
      EXPECT_EQ(cache.pool(0).k.size(0), options.pages_per_rank);
      EXPECT_EQ(cache.allocator().options().pages_per_rank, options.pages_per_rank);
      // A cache with the options of another is as large.
      EXPECT_EQ(KvCache(mesh, options).options().pages_per_rank, options.pages_per_rank);
    }
  });
}

TYPED_TEST_P(PoolsContract, EveryRankHasThePagesThatFit) {
  this->on_ranks([](Mesh& mesh) {
    const int me = mesh.rank().value, ranks = mesh.size();
    const KvCache mixed(mesh, cache_of_bytes((5 + (me + 1) % ranks) * granule(mesh)));
    const KvCache alone(mesh, cache_of_bytes(5 * granule(mesh)));
    const bool is_least = (me + 1) % ranks == 0;
    EXPECT_EQ(mixed.options().pages_per_rank > alone.options().pages_per_rank, !is_least);
    EXPECT_EQ(mixed.pool_bytes() > alone.pool_bytes(), !is_least);
    CacheOptions pages = unsized_cache();
    pages.pages_per_rank = 7 + me;
    const KvCache counted(mesh, pages);
    EXPECT_EQ(counted.options().pages_per_rank, 7 + me);
    std::int64_t all = 0;
    for (PageRank rank{0}; rank.value < mesh.kv_parallel(); ++rank.value) {
      EXPECT_EQ(counted.allocator().pool_pages(rank), 7 + rank.value);
      all += 7 + rank.value;
    }
    EXPECT_EQ(counted.allocator().free_pages(), all);
  });
}

TYPED_TEST_P(PoolsContract, DividesAFractionOfFreeMemoryAmongTheRanksOfADevice) {
  this->on_ranks([](Mesh& mesh) {
    constexpr std::int64_t kWanted = std::int64_t{24} << 20;
    // All ranks read the free memory before the first of them allocates, and get the same number.
    double free = static_cast<double>(free_memory(mesh.device()));
    broadcast(mesh.world(), Rank{0}, std::as_writable_bytes(std::span(&free, 1)));
    CacheOptions options = unsized_cache();
    options.memory_fraction = static_cast<double>(kWanted) * mesh.size() / free;
    const KvCache cache(mesh, options);
    // Ranks with a device of their own do not share: up to `size` times as much. Other programs
    // take and give memory meanwhile, hence the quarter.
    const bool one_device = mesh.device().kind == DeviceKind::kCpu || cuda_device_count() == 1;
    const std::int64_t most = kWanted * (one_device ? 1 : mesh.size());
    EXPECT_GE(cache.pool_bytes(), kWanted * 3 / 4 - granule(mesh));
    EXPECT_LE(cache.pool_bytes(), most * 5 / 4);
    EXPECT_EQ(cache.options().memory_fraction, 0);
    barrier(mesh.world());
  });
}

TYPED_TEST_P(PoolsContract, RejectsMemoryGivenInTwoWays) {
  this->on_ranks([](Mesh& mesh) {
    struct Memory {
      std::int64_t pages, bytes;
      double fraction;
    };
    const std::int64_t some = 5 * granule(mesh);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const Memory& memory :
         {Memory{0, 0, 0}, Memory{4, some, 0}, Memory{4, 0, 0.1}, Memory{0, some, 0.1},
          Memory{4, some, 0.1}, Memory{-4, 0, 0}, Memory{0, -some, 0}, Memory{0, 0, -0.1},
          Memory{0, 0, 1.1}, Memory{0, 0, nan}, Memory{4, 0, nan}, Memory{0, 100, 0}}) {
      CacheOptions options = unsized_cache();
      options.pages_per_rank = memory.pages;
      options.bytes = memory.bytes;
      options.memory_fraction = memory.fraction;
      EXPECT_THROW(KvCache(mesh, options), InvalidArgument)
          << memory.pages << ", " << memory.bytes << ", " << memory.fraction;
    }
  });
}

TYPED_TEST_P(PoolsContract, OneRankWithoutMemoryFailsOnAll) {
  this->on_ranks([](Mesh& mesh) {
    const bool last = mesh.rank().value == mesh.size() - 1;
    EXPECT_THROW(KvCache(mesh, cache_of_bytes(last ? 100 : 5 * granule(mesh))), InvalidArgument);
    CacheOptions options = unsized_cache();
    options.memory_fraction = 1e-15;
    EXPECT_THROW(KvCache(mesh, options), OutOfMemory);
    KvCache(mesh, cache_of_bytes(granule(mesh)));  // the ranks still work
  });
}

TYPED_TEST_P(PoolsContract, ThrowsOutOfMemory) {
  this->on_ranks([](Mesh& mesh) {
    // 64 heads x 64 tokens x (512 + 512) x 4 bytes: 16 MiB a page and layer.
    const CacheOptions huge{.layers = 1,
                            .q_heads = 64,
                            .kv_heads = 64,
                            .k_dim = 512,
                            .page_size = 64,
                            .pages_per_rank = 4'000'000,
                            .dtype = Dtype::kFloat32};
    try {
      KvCache cache(mesh, huge);
      ADD_FAILURE() << "made pools of 60 TB";
    } catch (const OutOfMemory& error) {
      EXPECT_EQ(error.rank().value, 0);
      EXPECT_EQ(error.asked_bytes(), 4'000'000 * (std::int64_t{16} << 20));
    }
    KvCache(mesh, cache_of_bytes(granule(mesh)));
  });
}

REGISTER_TYPED_TEST_SUITE_P(PoolsContract, EveryRankReadsThePoolsOfItsHeads,
                            PeersSeeThePlanesOfEveryFormat, ReadersSeeLaterWrites,
                            RejectsPoolsOfRanksOutOfRange, UsesByteBudget,
                            EveryRankHasThePagesThatFit,
                            DividesAFractionOfFreeMemoryAmongTheRanksOfADevice,
                            RejectsMemoryGivenInTwoWays, OneRankWithoutMemoryFailsOnAll,
                            ThrowsOutOfMemory);

}  // namespace kvmesh::test
