// PagedAttention on several ranks: each holds part of the pages, all get the whole output.
#include <algorithm>

#include "tests/runtime/torch_like/paged_case.hpp"

namespace kvmesh::test {
namespace {

struct Spread {
  int ranks;
  Placement placement;
  bool share;
};

class PagedOnRanks : public testing::TestWithParam<Spread> {};

const PagedShape kShape{
    .pages = 36, .page_size = 4, .rows = 4, .q_heads = 4, .kv_heads = 2, .k_dim = 8, .v_dim = 6};

std::int64_t pages_of(const PagedCase& c, PageRank rank) {
  std::int64_t count = 0;
  for (int row = 0; row < kShape.rows; ++row) {
    count += std::ranges::count(c.paged.pages(row), rank, &PageId::rank);
  }
  return count;
}

// Caches are poisoned, so that a read of another rank's page shows. Whole pages are assigned, so
// that the number of written elements shows which pages a rank wrote.
TEST_P(PagedOnRanks, EqualOneRank) {
  const auto& [ranks, placement, share] = GetParam();
  const auto body = [&](Mesh& mesh) {
    PagedCase c(mesh, kShape, placement, share);
    const std::int64_t lengths[] = {36, 4, 12, 48};
    for (int row = 0; row < kShape.rows; ++row) c.assign(row, lengths[row]);
    const std::int64_t mine = pages_of(c, mesh.page_rank());
    EXPECT_EQ(c.k_cache.written(), mine * kShape.page_size * kShape.kv_heads * kShape.k_dim);
    EXPECT_EQ(c.v_cache.written(), mine * kShape.page_size * kShape.kv_heads * kShape.v_dim);
    EXPECT_GT(mine, 0);
    EXPECT_TRUE(ranks == 1 || mine < 25) << mine;

    const BlockMask causal = BlockMask::create(
        mods::causal(), {.q_len = 7, .kv_len = 48, .q_block = 4, .kv_block = kShape.page_size});
    for (const BlockMask* mask : {static_cast<const BlockMask*>(nullptr), &causal}) {
      const std::vector<std::int64_t> kv_lens{47, 10, 4};
      PagedAttention::ForwardOptions options{
          .block_mask = mask, .batch_indices = {3, 2, 1}, .score_mod = mods::alibi(4)};
      OwnedTensor query = c.query(3, 7);
      EXPECT_TRUE(c.matches(c.forward(query, kv_lens, options), query, kv_lens, options));
    }
  };
  run_on_threads(ranks, body, {.threads = 1});
}

TEST_P(PagedOnRanks, ModsOverPhysicalPositionsCoverEveryPage) {
  const auto& [ranks, placement, share] = GetParam();
  const auto body = [&](Mesh& mesh) {
    PagedAttention paged(mesh, kShape.pages, kShape.page_size, 2, placement);
    paged.reserve(1, 30);
    const std::vector<std::int64_t> lengths{0, 27};
    const MaskMod visible = paged.get_mask_mod(MaskMod{}, lengths);
    int seen = 0;
    for (int kv = 0; kv < kShape.pages * kShape.page_size; ++kv) seen += visible(1, 0, 0, kv);
    EXPECT_EQ(seen, 27);
    const auto last = static_cast<int>(paged.physical_page(paged.pages(1)[6]));
    EXPECT_TRUE(visible(1, 0, 0, last * kShape.page_size + 2));
    EXPECT_FALSE(visible(1, 0, 0, last * kShape.page_size + 3));
    EXPECT_FALSE(visible(0, 0, 0, last * kShape.page_size));
    EXPECT_EQ(paged.first_page(), mesh.kv_rank().value * kShape.pages / ranks);
  };
  run_on_threads(ranks, body, {.threads = 1});
}

INSTANTIATE_TEST_SUITE_P(PagedAttention, PagedOnRanks,
                         testing::Values(Spread{1, Placement::kBalanced, false},
                                         Spread{2, Placement::kBalanced, false},
                                         Spread{2, Placement::kStriped, true},
                                         Spread{3, Placement::kStriped, false}));

TEST(PagedAttention, ErrorsOfMeshes) {
  run_on_threads(2,
                 [](Mesh& mesh) { EXPECT_THROW(PagedAttention(mesh, 9, 4, 1), InvalidArgument); });
  run_on_threads(2,
                 [](Mesh& mesh) { EXPECT_THROW(PagedAttention(mesh, 8, 4, 1), InvalidArgument); },
                 {.head_parallel = 2});
}

// The ranks notice that their calls differ.
TEST(PagedAttention, RejectsDifferentRanks) {
  const auto body = [](Mesh& mesh) {
    PagedCase c(mesh, kShape, Placement::kStriped, false);
    c.assign(0, 40);
    OwnedTensor query = c.query(1, 2);
    const std::vector<std::int64_t> kv_lens{mesh.rank().value == 0 ? 40 : 39};
    EXPECT_THROW(c.forward(query, kv_lens), DigestMismatch);
  };
  run_on_threads(2, body, {.threads = 1});
}

// The mesh that was passed may be destroyed first.
TEST(PagedAttention, KeepsItsMesh) {
  std::optional<Mesh> mesh(std::in_place, make_single_communicator());
  PagedCase c(*mesh, kShape, Placement::kBalanced, false);
  mesh.reset();
  c.assign(0, 9);
  OwnedTensor query = c.query(1, 3);
  EXPECT_TRUE(c.matches(c.forward(query, {9}), query, {9}));
}

}  // namespace
}  // namespace kvmesh::test
