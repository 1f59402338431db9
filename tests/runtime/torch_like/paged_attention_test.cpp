// PagedAttention as in PyTorch's listing: the listing's test and its methods.
#include <fmt/format.h>

#include "tests/runtime/torch_like/paged_case.hpp"

namespace kvmesh::test {
namespace {

// PyTorch's test: four rows of 17 to 79 tokens, twelve queries that start at the first key.
TEST(PagedAttention, MatchesPyTorchListing) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE(fmt::format("run it again with KVMESH_SEED={}", seed));
  PagedCase c({}, {}, seed);
  std::vector<std::int64_t> kv_lens;
  for (int row = 0; row < 4; ++row) {
    kv_lens.push_back(c.random.integer(17, 79));
    c.assign(row, kv_lens.back());
  }
  OwnedTensor query = c.query(4, 12);
  PagedAttention::ForwardOptions options{.scale = 1.0f / 8.0f};
  EXPECT_TRUE(c.matches(c.forward(query, kv_lens, options), query, kv_lens, options));
  // And with every default.
  EXPECT_TRUE(c.matches(c.forward(query, kv_lens), query, kv_lens));
}

TEST(PagedAttention, ReserveGivesWholePagesOnce) {
  PagedAttention paged(10, 16, 3);
  EXPECT_EQ(paged.free_pages(), 10);
  paged.reserve(0, 17);
  EXPECT_EQ(paged.capacity(0), 32);
  EXPECT_EQ(paged.free_pages(), 8);
  paged.reserve(0, 20);  // there is room
  paged.reserve(0, 0);
  EXPECT_EQ(paged.capacity(0), 32);
  EXPECT_EQ(paged.free_pages(), 8);
  const std::vector<PageId> before(paged.pages(0).begin(), paged.pages(0).end());
  paged.reserve(0, 33);  // one more; those before stay
  ASSERT_EQ(paged.pages(0).size(), 3u);
  EXPECT_TRUE(std::ranges::equal(paged.pages(0).first(2), before));
  EXPECT_EQ(paged.capacity(1), 0);
}

TEST(PagedAttention, ReservePastTheLimitChangesNothing) {
  PagedAttention paged(4, 16, 2);
  paged.reserve(0, 40);
  try {
    paged.reserve(1, 17);
    ADD_FAILURE() << "no error";
  } catch (const OutOfPages& error) {
    EXPECT_EQ(error.asked_pages(), 2);
    EXPECT_EQ(error.free_pages(), 1);
  }
  EXPECT_EQ(paged.free_pages(), 1);
  EXPECT_EQ(paged.capacity(1), 0);
  paged.reserve(1, 16);
  EXPECT_EQ(paged.free_pages(), 0);
}

TEST(PagedAttention, EraseFreesPages) {
  PagedAttention paged(6, 8, 2);
  paged.reserve(0, 30);
  paged.reserve(1, 10);
  paged.erase(0);
  EXPECT_EQ(paged.capacity(0), 0);
  EXPECT_EQ(paged.free_pages(), 4);
  EXPECT_EQ(paged.capacity(1), 16);
  paged.erase(0);  // of an empty row: nothing
  EXPECT_EQ(paged.free_pages(), 4);
}

// The listing is wrong here: the new owner of the pages must not see erased tokens.
TEST(PagedAttention, ErasedPagesHaveANewOwner) {
  PagedCase c({.pages = 8, .rows = 2});
  c.assign(0, 100);
  c.erase(0);
  c.assign(1, 120);  // takes the pages that row 0 had
  c.paged.reserve(1, 128);
  c.erase(1);
  c.assign(0, 50);
  c.assign(1, 60);
  const std::vector<std::int64_t> kv_lens{50, 60};
  OwnedTensor query = c.query(2, 5);
  EXPECT_TRUE(c.matches(c.forward(query, kv_lens), query, kv_lens));
}

// ---- assign ----

// Several rows at once, their positions in any order.
TEST(PagedAttention, AssignRowsAndPositionsInAnyOrder) {
  PagedCase c({.pages = 20,
               .page_size = 4,
               .rows = 3,
               .q_heads = 2,
               .kv_heads = 2,
               .k_dim = 8,
               .v_dim = 5});
  for (int row : {0, 2}) c.paged.reserve(row, 12);
  const std::vector<int> rows{2, 0};
  const std::vector<std::int64_t> positions{11, 0, 5, /* row 0: */ 3, 7, 1};
  OwnedTensor k(Dtype::kFloat32, {2, 2, 3, 8}), v(Dtype::kFloat32, {2, 2, 3, 5});
  for (OwnedTensor* tensor : {&k, &v}) {
    for (int b = 0; b < 2; ++b) {
      for (int h = 0; h < 2; ++h) {
        for (int s = 0; s < 3; ++s) {
          for (int d = 0; d < tensor->size(3); ++d) tensor->set(c.random.real(), b, h, s, d);
        }
      }
    }
  }
  c.paged.assign(rows, positions, k.view(), v.view(), c.k_cache.view(), c.v_cache.view());
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const auto b = static_cast<std::int64_t>(i) / 3, s = static_cast<std::int64_t>(i) % 3;
    const PageId page = c.paged.pages(
        rows[static_cast<std::size_t>(b)])[static_cast<std::size_t>(positions[i] / 4)];
    const std::int64_t at = page.index() * 4 + positions[i] % 4;
    for (int h = 0; h < 2; ++h) {
      for (int d = 0; d < 8; ++d) EXPECT_EQ(c.k_cache.at(0, h, at, d), k.at(b, h, s, d));
      for (int d = 0; d < 5; ++d) EXPECT_EQ(c.v_cache.at(0, h, at, d), v.at(b, h, s, d));
    }
  }
  EXPECT_EQ(c.k_cache.written(), 6 * 2 * 8);
  EXPECT_EQ(c.v_cache.written(), 6 * 2 * 5);
}

// ---- forward ----

// Rows of the page table in another order than the batch, and fewer of them.
TEST(PagedAttention, BatchIndices) {
  PagedCase c({.rows = 6, .k_dim = 24, .v_dim = 24});
  const std::int64_t lengths[] = {40, 7, 64, 65, 100, 1};
  for (int row = 0; row < 6; ++row) c.assign(row, lengths[row]);
  for (const std::vector<int>& rows :
       {std::vector{5, 4, 3, 2, 1, 0}, std::vector{4, 1}, std::vector{3, 3}}) {
    PagedAttention::ForwardOptions options{.batch_indices = rows, .score_mod = mods::alibi(6)};
    std::vector<std::int64_t> kv_lens;
    for (int row : rows) kv_lens.push_back(lengths[row]);
    OwnedTensor query = c.query(std::ssize(rows), 12);
    EXPECT_TRUE(c.matches(c.forward(query, kv_lens, options), query, kv_lens, options));
  }
}

// kv_lens below the number of assigned tokens hides the rest.
TEST(PagedAttention, KvLensBoundTheKeys) {
  PagedCase c({.k_dim = 16, .v_dim = 16});
  for (int row = 0; row < 4; ++row) c.assign(row, 70);
  const BlockMask everything =
      BlockMask::create(mods::no_mask(), {.q_len = 2, .kv_len = 70, .q_block = 2, .kv_block = 16});
  const std::vector<std::int64_t> kv_lens{0, 1, 33, 70};
  PagedAttention::ForwardOptions options{.block_mask = &everything};
  OwnedTensor query = c.query(4, 2);
  const PagedResult result = c.forward(query, kv_lens, options);
  EXPECT_TRUE(c.matches(result, query, kv_lens, options, {.mask = mods::no_mask()}));
  EXPECT_EQ(result.lse.at(0, 0, 0), -std::numeric_limits<float>::infinity());
}

// Grown in steps, as decoding does it.
TEST(PagedAttention, GrowsTokenByToken) {
  PagedCase c({.pages = 12,
               .page_size = 4,
               .rows = 2,
               .q_heads = 2,
               .kv_heads = 2,
               .k_dim = 8,
               .v_dim = 8});
  c.assign(0, 5);
  for (std::int64_t length = 1; length < 20; ++length) {
    c.assign(1, length, length - 1);
    const BlockMask mask =
        BlockMask::create(mods::causal(), {.q_len = 1,
                                           .kv_len = 20,
                                           .q_block = 1,
                                           .kv_block = 4,
                                           .q_start = {static_cast<std::int32_t>(length - 1)}});
    const std::vector<std::int64_t> kv_lens{length};
    PagedAttention::ForwardOptions options{.block_mask = &mask, .batch_indices = {1}};
    OwnedTensor query = c.query(1, 1);
    EXPECT_TRUE(c.matches(c.forward(query, kv_lens, options), query, kv_lens, options,
                          {.mask = mods::causal(), .first_position = length - 1}));
  }
}

}  // namespace
}  // namespace kvmesh::test
