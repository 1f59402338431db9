// transfer_pages over any ranks: within a rank, out of maps of the others' pools, and by messages.
#pragma once

#include <numeric>
#include <set>
#include <span>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "runtime/cache/moves/page_transfer.hpp"
#include "runtime/memory/layer_groups.hpp"
#include "tests/contracts/places.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {

/// Pages below kSources are read, all others are written.
struct TransferCase {
  static constexpr int kLayers = 2, kPageSize = 4, kPages = 40, kSources = 20;
  /// Planes that differ in every property, and those of latent and of float8 pages.
  static std::vector<PageFormat> formats() {
    const AttentionShape shape{
        .q_heads = 6, .kv_heads = 3, .k_dim = 7, .v_dim = 5, .page_size = kPageSize};
    return {{.heads = 3,
             .page_size = kPageSize,
             .planes = {{"a", Dtype::kFloat32, 6},
                        {"b", Dtype::kBFloat16, 5},
                        {"c", Dtype::kFloat32, 1}}},
            make_page_format(shape, {.kind = PageKind::kLatent}),
            make_page_format(shape, {.dtype = Dtype::kFloat8E4M3})};
  }
};

inline std::int64_t row_bytes(const PagePlane& plane) {
  return plane.elements * static_cast<std::int64_t>(size_bytes(plane.dtype));
}

/// A byte's address in the pools: byte `i` of a plane of a layer of a rank.
struct ByteAt {
  ByteAt(const PageFormat& format, int of_rank, int of_layer, std::size_t of_plane, std::int64_t i)
      : rank(of_rank), layer(of_layer), plane(of_plane) {
    const std::int64_t row = row_bytes(format.planes[plane]);
    column = i % row;
    token = i / row % TransferCase::kPageSize;
    head = i / row / TransferCase::kPageSize % format.heads;
    page = i / row / TransferCase::kPageSize / format.heads;
  }

  /// Bytes computed from the whole address: those of a page differ from those of any other.
  std::byte stamp() const {
    std::uint64_t hash = 1;
    for (const std::int64_t part : {std::int64_t{rank}, std::int64_t{layer},
                                    static_cast<std::int64_t>(plane), page, head, token, column}) {
      hash = (hash ^ static_cast<std::uint64_t>(part)) * 0x9E37'79B9'7F4A'7C15;
      hash ^= hash >> 29;
    }
    return static_cast<std::byte>(hash);
  }

  int rank, layer;
  std::size_t plane;
  std::int64_t page, head, token, column;
};

/// Calls `body(view, layer, plane)` with each plane of each layer.
inline void for_each_plane(const PoolStorage& pools, const auto& body) {
  for (int layer = 0; layer < pools.layers(); ++layer) {
    const PagePlanes planes = pools.layer(layer);
    for (std::size_t plane = 0; plane < planes.size(); ++plane) body(planes[plane], layer, plane);
  }
}

inline std::int64_t page_bytes(const TensorView& plane) {
  return plane.stride(0) * static_cast<std::int64_t>(size_bytes(plane.dtype));
}

inline void put(const TensorView& plane, std::int64_t pages, const auto& byte_at) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(pages * page_bytes(plane)));
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_at(static_cast<std::int64_t>(i));
  copy_bytes(plane.data, bytes.data(), bytes.size());
}

inline void stamp_all(const PoolStorage& pools, const PageFormat& format, int rank) {
  for_each_plane(pools, [&](const TensorView& view, int layer, std::size_t plane) {
    put(view, TransferCase::kPages,
        [&](std::int64_t i) { return ByteAt(format, rank, layer, plane, i).stamp(); });
  });
}

inline void spoil_sources(const PoolStorage& pools) {
  for_each_plane(pools, [&](const TensorView& view, int, std::size_t) {
    put(view, TransferCase::kSources, [](std::int64_t) { return std::byte{0xFF}; });
  });
}

/// Expects the right byte in every page that is not a source.
inline void expect_copied(const PoolStorage& pools, const PageFormat& format, int rank,
                          const std::vector<PageCopy>& copies) {
  for_each_plane(pools, [&](const TensorView& view, int layer, std::size_t plane) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(TransferCase::kPages * page_bytes(view)));
    copy_bytes(bytes.data(), view.data, bytes.size());
    for (std::int64_t i = TransferCase::kSources * page_bytes(view); i < std::ssize(bytes); ++i) {
      const ByteAt at(format, rank, layer, plane, i);
      ByteAt from = at;
      for (const PageCopy& copy : copies) {
        const PageId here{PageRank{rank}, static_cast<std::int32_t>(at.page)};
        if (copy.destination != here || at.token >= copy.tokens) continue;
        from.rank = copy.source.rank().value;
        from.page = copy.source.index();
      }
      ASSERT_EQ(bytes[static_cast<std::size_t>(i)], from.stamp())
          << "rank " << rank << ", page " << at.page << ", token " << at.token << ", layer "
          << layer << ", plane " << plane;
    }
  });
}

/// The bytes of the tokens that this rank has to send, or the signals instead.
inline std::uint64_t bytes_to_send(const PageFormat& format, int rank,
                                   const std::vector<PageCopy>& copies, bool maps) {
  std::int64_t token_bytes = 0;
  for (const PagePlane& plane : format.planes) token_bytes += format.heads * row_bytes(plane);
  std::set<int> sources, readers;
  std::uint64_t bytes = 0;
  for (const PageCopy& copy : copies) {
    const int from = copy.source.rank().value, to = copy.destination.rank().value;
    if (from == to) continue;
    if (from == rank) readers.insert(to);
    if (to == rank) sources.insert(from);
    if (from != rank) continue;
    bytes += static_cast<std::uint64_t>(copy.tokens * TransferCase::kLayers * token_bytes);
  }
  return maps ? readers.size() + sources.size() : bytes;
}

/// Copies the list, then every rank overwrites its sources at once.
inline void check_copies(Mesh& mesh, const PageFormat& format, const std::vector<PageCopy>& copies,
                         bool maps) {
  SCOPED_TRACE(std::string(maps ? "maps" : "messages") + " of " +
               std::string(format.planes[0].name));
  Communicator& kv = mesh.kv_comm();
  const int me = mesh.kv_rank().value;
  PageAllocator allocator({.ranks = kv.size(), .pages_per_rank = 1});
  const std::unique_ptr<Backend> backend = make_backend(mesh, allocator);
  std::vector<int> layers(TransferCase::kLayers);
  std::iota(layers.begin(), layers.end(), 0);
  const PoolStorage pools(PoolLayout({{format, TransferCase::kPages, layers}}, mesh.device()),
                          mesh.device(), Sharing::kNode);
  const PeerPools peers = maps ? PeerPools(pools, kv) : PeerPools(kv.size());
  stamp_all(pools, format, me);
  const std::uint64_t before = kv.sent_bytes();
  transfer_pages(*backend, pools, peers, kv, Membership(kv.size()), copies);
  EXPECT_EQ(kv.sent_bytes() - before, bytes_to_send(format, me, copies, maps));
  spoil_sources(pools);
  expect_copied(pools, format, me, copies);
}

/// On every rank, by maps and by messages, in every format. `copies(ranks)` is the list for this
/// many ranks.
template <class Place>
void check_on_ranks(const auto& copies) {
  Place::run([&](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = Place::kDevice});
    for (const PageFormat& format : TransferCase::formats()) {
      for (bool maps : {true, false}) check_copies(mesh, format, copies(comm.size()), maps);
    }
  });
}

template <class Place>
class PageTransferContract : public testing::Test {};
TYPED_TEST_SUITE_P(PageTransferContract);

TYPED_TEST_P(PageTransferContract, CopiesTheFirstTokensWithinARank) {
  check_on_ranks<TypeParam>([](int ranks) -> std::vector<PageCopy> {
    const PageRank first{0}, last{ranks - 1};
    return {{{first, 1}, {first, 27}, 3}, {{first, 1}, {first, 28}, 1}, {{last, 0}, {last, 23}, 4}};
  });
  check_on_ranks<TypeParam>([](int) -> std::vector<PageCopy> { return {}; });
}

TYPED_TEST_P(PageTransferContract, CopiesPagesThatMove) {
  check_on_ranks<TypeParam>([](int ranks) -> std::vector<PageCopy> {
    const PageRank first{0}, last{ranks - 1};
    return {{{first, 1}, {last, 25}, 2}, {{last, 1}, {first, 29}, 4}, {{first, 3}, {last, 24}, 1}};
  });
  check_on_ranks<TypeParam>([](int ranks) -> std::vector<PageCopy> {
    return {{{PageRank{0}, 1}, {PageRank{ranks - 1}, 21}, 3}};  // one way only
  });
}

TYPED_TEST_P(PageTransferContract, CopiesAnyMixture) {
  TypeParam::run([](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    Random random(seed);
    Mesh mesh(comm, {.threads = 1, .device = TypeParam::kDevice});
    const auto rank = [&] {
      return PageRank{static_cast<int>(random.integer(0, comm.size() - 1))};
    };
    const std::vector<PageFormat> formats = TransferCase::formats();
    for (std::size_t round = 0; round < 12; ++round) {
      std::vector<PageCopy> copies;
      for (int i = 0; i < 18; ++i) {
        const PageRank from = rank(), to = rank();
        copies.push_back({{from, static_cast<int>(random.integer(0, TransferCase::kSources - 1))},
                          {to, TransferCase::kSources + i},
                          static_cast<int>(random.integer(1, TransferCase::kPageSize))});
      }
      for (bool maps : {true, false}) {
        check_copies(mesh, formats[round % formats.size()], copies, maps);
      }
    }
  });
}

REGISTER_TYPED_TEST_SUITE_P(PageTransferContract, CopiesTheFirstTokensWithinARank,
                            CopiesPagesThatMove, CopiesAnyMixture);

}  // namespace kvmesh::test
