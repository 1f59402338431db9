// copy_on_write: within a rank, and through the communicator.
#include <gtest/gtest.h>

#include <vector>

#include "runtime/cache_state.hpp"
#include "tests/support/random.hpp"

namespace kvmesh {
namespace {

constexpr int kRanks = 3, kLayers = 2, kHeads = 2, kPageSize = 4, kPages = 40;

const LocalShape kShape{.attention = {.q_heads = kHeads,
                                      .kv_heads = kHeads,
                                      .k_dim = 5,
                                      .v_dim = 3,
                                      .page_size = kPageSize},
                        .pages = kPages,
                        .dtype = Dtype::kFloat32};

struct Where {
  int rank, layer, page, head, token, d;
  bool is_value;
};

// A number that no other place of any rank has.
float stamp(const Where& w) {
  int code = w.rank;
  code = code * kLayers + w.layer;
  code = code * kPages + w.page;
  code = code * kHeads + w.head;
  code = code * kPageSize + w.token;
  code = code * 5 + w.d;
  return static_cast<float>(code * 2 + w.is_value);
}

void for_each_number(const PoolStorage& pools, int rank, const auto& body) {
  for (int layer = 0; layer < kLayers; ++layer) {
    const KvPool pool = pools.layer(layer);
    for (bool is_value : {false, true}) {
      const TensorView& half = is_value ? pool.v : pool.k;
      auto* number = static_cast<float*>(half.data);
      for (int page = 0; page < kPages; ++page) {
        for (int head = 0; head < kHeads; ++head) {
          for (int token = 0; token < kPageSize; ++token) {
            for (int d = 0; d < half.size(3); ++d, ++number) {
              body(Where{rank, layer, page, head, token, d, is_value}, *number);
            }
          }
        }
      }
    }
  }
}

// Copies the list, then expects every number of every rank where it must be.
void check_copies(const std::vector<PageCopy>& copies, bool remote) {
  run_loopback(kRanks, [&](Communicator& comm) {
    const int me = comm.rank().value;
    Mesh mesh(comm, {.threads = 1});
    const std::unique_ptr<Backend> backend = make_backend(mesh);
    PoolStorage pools(kShape, kLayers, mesh.device());
    for_each_number(pools, me, [](const Where& at, float& number) { number = stamp(at); });
    const std::uint64_t sent = comm.sent_bytes();
    copy_on_write(*backend, pools, PeerPools(comm.size()), comm, copies);
    if (!remote) {
      EXPECT_EQ(comm.sent_bytes(), sent);
    }
    for_each_number(pools, me, [&](const Where& at, float& number) {
      Where from = at;
      for (const PageCopy& copy : copies) {
        if (copy.destination != PageId{Rank{me}, at.page} || at.token >= copy.tokens) continue;
        from.rank = copy.source.rank().value;
        from.page = copy.source.index();
      }
      ASSERT_EQ(number, stamp(from)) << "rank " << me << ", page " << at.page << ", token "
                                     << at.token << ", layer " << at.layer;
    });
  });
}

PageId page(int rank, int index) { return {Rank{rank}, index}; }

TEST(PageTransfer, CopiesTheFirstTokensWithinARank) {
  check_copies(
      {{page(0, 1), page(0, 7), 3}, {page(0, 1), page(0, 8), 1}, {page(2, 0), page(2, 3), 4}},
      false);
  check_copies({}, false);
}

TEST(PageTransfer, SendsPagesThatMove) {
  check_copies({{page(0, 1), page(1, 1), 3}}, true);
  check_copies(
      {{page(0, 1), page(2, 5), 2}, {page(2, 1), page(0, 9), 4}, {page(0, 3), page(2, 4), 1}},
      true);
}

TEST(PageTransfer, CopiesAnyMixture) {
  const std::uint64_t seed = test::seed_or(20240607);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 10; ++round) {
    std::vector<PageCopy> copies;
    for (int i = 0; i < 12; ++i) {  // sources are pages 0-19, destinations 20 and up, each once
      copies.push_back({page(static_cast<int>(random.integer(0, kRanks - 1)),
                             static_cast<int>(random.integer(0, 19))),
                        page(static_cast<int>(random.integer(0, kRanks - 1)), 20 + i),
                        static_cast<int>(random.integer(1, kPageSize))});
    }
    check_copies(copies, true);
  }
}

}  // namespace
}  // namespace kvmesh
