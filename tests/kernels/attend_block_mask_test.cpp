// Explicit block masks: lists of pages per batch row, head and q block.
#include <fmt/format.h>

#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

enum class Listed : std::uint8_t { kNo, kPartial, kFull };

// Lists for every (batch row, head, q block, page of the sequence), and the pairs that they make
// visible.
class Lists {
 public:
  Lists(const AttentionCase& c, std::int64_t heads, int q_block, std::int64_t q_blocks,
        const std::function<Listed(std::int64_t b, std::int64_t h, std::int64_t q, int page)>& of)
      : heads_(heads),
        q_block_(q_block),
        q_blocks_(q_blocks),
        mask_(batch(c), heads, q_blocks, q_block) {
    for (std::int64_t b = 0; b < batch(c); ++b) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t q = 0; q < q_blocks; ++q) add_row(c, b, h, q, of);
      }
    }
  }

  const LocalBlockMask& mask() const { return mask_; }

  // For queries with the positions 0, 1, ...
  MaskMod visible(const MaskMod& partial, int page_size) const {
    const Buffer<std::int32_t> listed(listed_);
    const auto heads = static_cast<std::int32_t>(heads_),
               q_blocks = static_cast<std::int32_t>(q_blocks_);
    return [&](const Expr& b, const Expr& h, const Expr& q, const Expr& kv) {
      const Expr head = heads == 1 ? Expr(0) : h;
      const Expr row = (b * heads + head) * q_blocks + q / q_block_;
      const Expr found = listed[row * kPages + kv / page_size];
      return found == std::int32_t(Listed::kFull) ||
             (found == std::int32_t(Listed::kPartial) && partial(b, h, q, kv));
    };
  }

 private:
  static constexpr std::int32_t kPages = 64;
  static std::int64_t batch(const AttentionCase& c) { return std::ssize(c.batch().kv_lens); }

  template <class Of>
  void add_row(const AttentionCase& c, std::int64_t b, std::int64_t h, std::int64_t q,
               const Of& of) {
    std::vector<LocalBlock> row;
    std::vector<std::int32_t> listed(kPages);
    const auto s = static_cast<std::size_t>(b);
    for (std::int64_t i = c.batch().page_indptr[s]; i < c.batch().page_indptr[s + 1]; ++i) {
      const LocalPage& page = c.batch().pages[static_cast<std::size_t>(i)];
      const Listed found = of(b, h, q, page.logical);
      if (found == Listed::kNo) continue;
      listed[static_cast<std::size_t>(page.logical)] = std::int32_t(found);
      row.push_back({page.page, page.logical, found == Listed::kFull});
    }
    mask_.add_row(row);
    listed_.insert(listed_.end(), listed.begin(), listed.end());
  }

  std::int64_t heads_;
  int q_block_;
  std::int64_t q_blocks_;
  LocalBlockMask mask_;
  std::vector<std::int32_t> listed_;
};

CaseSpec two_sequences(std::int64_t q_len) {
  CaseSpec spec{.shape = {8, 2, 16, 16, 16}};
  spec.sequences = {{.q_len = q_len, .kv_len = 200}, {.q_len = q_len, .kv_len = 90}};
  for (int s = 0; s < 2; ++s) {
    for (std::int64_t i = 0; i < q_len; ++i) spec.positions.push_back(i);
  }
  spec.options.mask = mods::causal();
  return spec;
}

struct Blocks {
  int q_block;
  std::int64_t heads;
};

class AttendBlockMask : public testing::TestWithParam<Blocks> {};

// Random lists that differ among the heads of a group, with and without the mask they name.
TEST_P(AttendBlockMask, RandomLists) {
  constexpr std::int64_t kQueries = 140;
  const auto [q_block, heads] = GetParam();
  const std::uint64_t seed = seed_or(17);
  SCOPED_TRACE(fmt::format("run it again with KVMESH_SEED={}", seed));
  Random random(seed);
  CaseSpec spec = two_sequences(kQueries);
  AttentionCase c(spec);
  for (int round = 0; round < 3; ++round) {
    const Lists lists(c, heads, q_block, (kQueries + q_block - 1) / q_block,
                      [&](auto...) { return Listed(random.integer(0, 2)); });
    spec.options.block_mask = &lists.mask();
    const MaskMod visible = lists.visible(spec.options.mask, spec.shape.page_size);
    EXPECT_TRUE(c.matches(c.run(spec.options), visible));
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttendBlockMask,
                         testing::Values(Blocks{1, 8}, Blocks{3, 8}, Blocks{128, 8}, Blocks{16, 1},
                                         Blocks{3, 1}, Blocks{200, 8}),
                         [](const auto& param) {
                           return fmt::format("QBlock{}Heads{}", param.param.q_block,
                                              param.param.heads);
                         });

// Lists made from the mask give the mask's result, with the same work.
TEST(AttendBlockMask, ListsMadeFromTheMaskEqualTheMask) {
  CaseSpec spec = two_sequences(64);
  for (const MaskMod& mask : {mods::causal(), mods::sliding_window(24), mods::no_mask()}) {
    spec.options.mask = mask;
    AttentionCase c(spec);
    const BlockMask blocks = BlockMask::create(
        mask, {.batch = 2, .q_len = 64, .kv_len = 200, .q_block = 16, .kv_block = 16});
    const Lists lists(c, 1, 16, 4, [&](std::int64_t b, std::int64_t h, std::int64_t q, int page) {
      const BlockRowView row = blocks.row(b, h, q);
      if (std::ranges::count(row.full, page) > 0) return Listed::kFull;
      return std::ranges::count(row.partial, page) > 0 ? Listed::kPartial : Listed::kNo;
    });
    AttentionOptions options = spec.options;
    options.block_mask = &lists.mask();
    const CaseResult listed = c.run(options), found = c.run();
    EXPECT_TRUE(c.matches(listed));
    if (backend() != "cpu") continue;  // only the CPU divides rows as the lists do
    EXPECT_EQ(listed.o, found.o);
    EXPECT_EQ(listed.tiles.visited, found.tiles.visited);
    EXPECT_EQ(listed.tiles.masked, found.tiles.masked);
  }
}

// A page that is in no list is not read; a page listed as full is not masked.
TEST(AttendBlockMask, ReadsListedPagesOnly) {
  CaseSpec spec = two_sequences(5);
  spec.options.mask = [](auto, auto, auto, auto kv) { return kv < 0; };
  AttentionCase c(spec);
  const Lists lists(c, 1, 128, 1, [](std::int64_t, std::int64_t, std::int64_t, int page) {
    return page == 3 ? Listed::kFull : page == 1 ? Listed::kPartial : Listed::kNo;
  });
  for (std::size_t s : {0, 1}) {
    for (std::int64_t page : {0, 2, 4, 5}) c.poison_page(s, page);
  }
  spec.options.block_mask = &lists.mask();
  const CaseResult result = c.run(spec.options);
  EXPECT_TRUE(c.matches(result, lists.visible(spec.options.mask, 16)));
  EXPECT_EQ(result.tiles.visited, 2 * 2 * 2);  // sequences, kv heads, pages
  EXPECT_EQ(result.tiles.masked, 2 * 2);
}

// The plan keeps what it needs: the lists may be freed.
TEST(AttendBlockMask, ListsAreCopied) {
  CaseSpec spec = two_sequences(5);
  AttentionCase c(spec);
  auto lists =
      std::make_unique<Lists>(c, 8, 2, 3, [](std::int64_t, std::int64_t h, auto, int page) {
        return (page + h) % 2 == 0 ? Listed::kFull : Listed::kNo;
      });
  const MaskMod visible = lists->visible(spec.options.mask, 16);
  spec.options.block_mask = &lists->mask();
  AttentionPlan plan(spec.shape, c.batch(), spec.options);
  lists.reset();
  CaseResult result = c.outputs();
  ThreadPool threads(1);
  plan.attend_partial(c.q(), c.pool(), c.partial(result), threads);
  EXPECT_TRUE(c.matches(result, visible));
}

TEST(AttendBlockMask, TooSmallForTheBatch) {
  CaseSpec spec = two_sequences(20);
  AttentionCase c(spec);
  const LocalBlockMask few_rows(1, 1, 2, 16), few_heads(2, 7, 2, 16), few_blocks(2, 8, 1, 16);
  for (const LocalBlockMask* mask : {&few_rows, &few_heads, &few_blocks}) {
    LocalBlockMask filled = *mask;
    for (std::int64_t i = 0; i < mask->batch() * mask->heads() * mask->q_blocks(); ++i)
      filled.add_row({});
    spec.options.block_mask = &filled;
    EXPECT_THROW(AttentionPlan(spec.shape, c.batch(), spec.options), InvalidArgument);
  }
}

}  // namespace
}  // namespace kvmesh::test
