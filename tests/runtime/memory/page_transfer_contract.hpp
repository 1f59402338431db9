// copy_on_write over any ranks: within a rank, out of maps of the others' pools, and by messages.
#pragma once

#include <limits>
#include <set>
#include <span>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "runtime/cache_state.hpp"
#include "tests/contracts/places.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {

/// Pages below kSources are read, those from there on are written.
struct TransferCase {
  static constexpr int kLayers = 2, kHeads = 2, kPageSize = 4, kPages = 40, kSources = 20;
  static constexpr LocalShape shape() {
    return {.attention = {.q_heads = kHeads,
                          .kv_heads = kHeads,
                          .k_dim = 6,
                          .v_dim = 3,
                          .page_size = kPageSize},
            .pages = kPages,
            .dtype = Dtype::kFloat32};
  }
};

/// The place of a number in the pools: element `i` of one half of a layer of a rank.
struct NumberAt {
  NumberAt(int of_rank, int of_layer, bool value, std::int64_t i) {
    using C = TransferCase;
    const std::int64_t dim = value ? C::shape().attention.v_dim : C::shape().attention.k_dim;
    rank = of_rank;
    layer = of_layer;
    is_value = value;
    d = i % dim;
    token = i / dim % C::kPageSize;
    head = i / dim / C::kPageSize % C::kHeads;
    page = i / dim / C::kPageSize / C::kHeads;
  }

  /// A number that no other place of any rank has.
  float stamp() const {
    using C = TransferCase;
    std::int64_t code = rank;
    code = code * C::kLayers + layer;
    code = code * C::kPages + page;
    code = code * C::kHeads + head;
    code = code * C::kPageSize + token;
    code = code * 6 + d;
    return static_cast<float>(code * 2 + is_value);
  }

  int rank, layer;
  std::int64_t page, head, token, d;
  bool is_value;
};

/// Calls `body(view, layer, is_value)` with each half of each layer.
inline void for_each_half(const PoolStorage& pools, const auto& body) {
  for (int layer = 0; layer < pools.layers(); ++layer) {
    body(pools.layer(layer).k, layer, false);
    body(pools.layer(layer).v, layer, true);
  }
}

inline void put(const TensorView& half, std::int64_t pages, const auto& number_at) {
  std::vector<float> numbers(static_cast<std::size_t>(pages * half.stride(0)));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = number_at(static_cast<std::int64_t>(i));
  }
  copy_bytes(half.data, numbers.data(), numbers.size() * sizeof(float));
}

inline void stamp_all(const PoolStorage& pools, int rank) {
  for_each_half(pools, [&](const TensorView& half, int layer, bool is_value) {
    put(half, TransferCase::kPages,
        [&](std::int64_t i) { return NumberAt(rank, layer, is_value, i).stamp(); });
  });
}

inline void spoil_sources(const PoolStorage& pools) {
  for_each_half(pools, [&](const TensorView& half, int, bool) {
    put(half, TransferCase::kSources,
        [](std::int64_t) { return std::numeric_limits<float>::quiet_NaN(); });
  });
}

/// Expects every number of the pages that are no sources where it must be.
inline void expect_copied(const PoolStorage& pools, int rank, const std::vector<PageCopy>& copies) {
  for_each_half(pools, [&](const TensorView& half, int layer, bool is_value) {
    std::vector<float> numbers(static_cast<std::size_t>(half.elements()));
    copy_bytes(numbers.data(), half.data, numbers.size() * sizeof(float));
    for (std::int64_t i = TransferCase::kSources * half.stride(0); i < half.elements(); ++i) {
      const NumberAt at(rank, layer, is_value, i);
      NumberAt from = at;
      for (const PageCopy& copy : copies) {
        const PageId here{Rank{rank}, static_cast<std::int32_t>(at.page)};
        if (copy.destination != here || at.token >= copy.tokens) continue;
        from.rank = copy.source.rank().value;
        from.page = copy.source.index();
      }
      ASSERT_EQ(numbers[static_cast<std::size_t>(i)], from.stamp())
          << "rank " << rank << ", page " << at.page << ", token " << at.token << ", layer "
          << layer;
    }
  });
}

/// The bytes of the tokens that this rank has to send, or the signals in their place.
inline std::uint64_t bytes_to_send(int rank, const std::vector<PageCopy>& copies, bool maps) {
  const AttentionShape& a = TransferCase::shape().attention;
  std::set<int> sources, readers;
  std::uint64_t bytes = 0;
  for (const PageCopy& copy : copies) {
    const int from = copy.source.rank().value, to = copy.destination.rank().value;
    if (from == to) continue;
    if (from == rank) readers.insert(to);
    if (to == rank) sources.insert(from);
    if (from != rank) continue;
    bytes += static_cast<std::uint64_t>(copy.tokens * TransferCase::kLayers * a.kv_heads *
                                        (a.k_dim + a.v_dim)) *
             sizeof(float);
  }
  return maps ? readers.size() + sources.size() : bytes;
}

/// Copies the list, then lets every rank spoil its sources at once.
inline void check_copies(Mesh& mesh, const std::vector<PageCopy>& copies, bool maps) {
  SCOPED_TRACE(maps ? "maps" : "messages");
  Communicator& kv = mesh.kv();
  const int me = mesh.kv_rank().value;
  PageAllocator allocator({.ranks = kv.size(), .pages_per_rank = 1});
  const std::unique_ptr<Backend> backend = make_backend(mesh, allocator);
  const PoolStorage pools(TransferCase::shape(), TransferCase::kLayers, mesh.device(),
                          Sharing::kNode);
  const PeerPools peers = maps ? PeerPools(pools, kv) : PeerPools(kv.size());
  stamp_all(pools, me);
  const std::uint64_t before = kv.sent_bytes();
  copy_on_write(*backend, pools, peers, kv, copies);
  EXPECT_EQ(kv.sent_bytes() - before, bytes_to_send(me, copies, maps));
  spoil_sources(pools);
  expect_copied(pools, me, copies);
}

/// On every rank, by maps and by messages. `copies(ranks)` is the list for so many ranks.
template <class Place>
void check_on_ranks(const auto& copies) {
  Place::run([&](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = Place::kDevice});
    for (bool maps : {true, false}) check_copies(mesh, copies(comm.size()), maps);
  });
}

template <class Place>
class PageTransferContract : public testing::Test {};
TYPED_TEST_SUITE_P(PageTransferContract);

TYPED_TEST_P(PageTransferContract, CopiesTheFirstTokensWithinARank) {
  check_on_ranks<TypeParam>([](int ranks) -> std::vector<PageCopy> {
    const Rank first{0}, last{ranks - 1};
    return {{{first, 1}, {first, 27}, 3}, {{first, 1}, {first, 28}, 1}, {{last, 0}, {last, 23}, 4}};
  });
  check_on_ranks<TypeParam>([](int) -> std::vector<PageCopy> { return {}; });
}

TYPED_TEST_P(PageTransferContract, CopiesPagesThatMove) {
  check_on_ranks<TypeParam>([](int ranks) -> std::vector<PageCopy> {
    const Rank first{0}, last{ranks - 1};
    return {{{first, 1}, {last, 25}, 2}, {{last, 1}, {first, 29}, 4}, {{first, 3}, {last, 24}, 1}};
  });
  check_on_ranks<TypeParam>([](int ranks) -> std::vector<PageCopy> {
    return {{{Rank{0}, 1}, {Rank{ranks - 1}, 21}, 3}};  // one way only
  });
}

TYPED_TEST_P(PageTransferContract, CopiesAnyMixture) {
  TypeParam::run([](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    Random random(seed);
    Mesh mesh(comm, {.threads = 1, .device = TypeParam::kDevice});
    const auto rank = [&] { return Rank{static_cast<int>(random.integer(0, comm.size() - 1))}; };
    for (int round = 0; round < 10; ++round) {
      std::vector<PageCopy> copies;
      for (int i = 0; i < 18; ++i) {
        const Rank from = rank(), to = rank();
        copies.push_back({{from, static_cast<int>(random.integer(0, TransferCase::kSources - 1))},
                          {to, TransferCase::kSources + i},
                          static_cast<int>(random.integer(1, TransferCase::kPageSize))});
      }
      for (bool maps : {true, false}) check_copies(mesh, copies, maps);
    }
  });
}

REGISTER_TYPED_TEST_SUITE_P(PageTransferContract, CopiesTheFirstTokensWithinARank,
                            CopiesPagesThatMove, CopiesAnyMixture);

}  // namespace kvmesh::test
