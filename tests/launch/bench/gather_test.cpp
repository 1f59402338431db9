// The parts of a gather: every token once, on the page that has it.
#include "launch/bench/gather.hpp"

#include <gtest/gtest.h>

#include "launch/bench/amounts.hpp"

namespace kvmesh::bench {
namespace {

PageReads::Sequence sequence_of(std::int64_t tokens, std::int64_t page_size, std::int32_t first) {
  PageReads::Sequence sequence{.tokens = tokens};
  for (std::int64_t token = 0; token < tokens; token += page_size) {
    sequence.pages.push_back(first--);
  }
  return sequence;
}

TEST(Gather, PartsCoverEveryTokenOnce) {
  for (const std::int64_t page_size : {1, 16, 96, 1024}) {
    for (const std::int64_t part_tokens : {64, 512}) {
      const std::vector<PageReads::Sequence> sequences{sequence_of(1000, page_size, 5000),
                                                       sequence_of(0, page_size, 0),
                                                       sequence_of(512, page_size, 2000)};
      const GatherList list = gather_list(sequences, page_size, part_tokens);
      std::size_t part = 0, before = 0;
      for (const PageReads::Sequence& sequence : sequences) {
        std::int64_t token = 0;
        for (; token < sequence.tokens; ++part) {
          ASSERT_LT(part, list.parts.size());
          ASSERT_EQ(token % page_size, 0);
          const auto page = static_cast<std::size_t>(token / page_size);
          EXPECT_EQ(static_cast<std::size_t>(list.parts[part].first), before + page);
          EXPECT_EQ(list.pages[before + page], sequence.pages[page]);
          EXPECT_GT(list.parts[part].tokens, 0);
          EXPECT_LE(list.parts[part].tokens, std::max(part_tokens, page_size));
          token += list.parts[part].tokens;
        }
        EXPECT_EQ(token, sequence.tokens);
        before += sequence.pages.size();
      }
      EXPECT_EQ(part, list.parts.size());
      EXPECT_EQ(before, list.pages.size());
    }
  }
}

TEST(Gather, PartsAreSmallerIfBlocksWouldIdle) {
  const std::vector<PageReads::Sequence> many(64, PageReads::Sequence{.tokens = 8192});
  EXPECT_EQ(gather_part_tokens(many, 8, 132), 512);
  const std::vector<PageReads::Sequence> one(1, PageReads::Sequence{.tokens = 8192});
  EXPECT_EQ(gather_part_tokens(one, 8, 132), 64);
  EXPECT_EQ(gather_part_tokens({}, 8, 132), 64);
}

TEST(Gather, ReadsThePagesOfTheRank) {
  run_on_threads(2, [](Mesh& mesh) {
    const auto machine = make_cpu_machine(mesh, 1 << 20);
    const Shape model{.q_heads = 2, .kv_heads = 2, .k_dim = 8, .v_dim = 8, .page_size = 16};
    Workload workload(mesh, *machine, {.model = model, .batch = 1, .context = 5000, .layers = 2});
    const PageReads reads = page_reads(workload, {}, {});
    ASSERT_EQ(reads.sequences.size(), 1u);
    EXPECT_EQ(reads.pools.size(), 2u);
    EXPECT_EQ(reads.pools[1].k.data, workload.cache().pool(1).k.data);
    std::int64_t tokens = 0;
    std::size_t place = 0;
    std::int64_t begin = 0;
    for (const PageId page : workload.cache().allocator().pages(workload.sequences()[0])) {
      const std::int64_t end = std::min<std::int64_t>(begin + 16, 5000);
      if (page.rank() == mesh.page_rank()) {
        ASSERT_LT(place, reads.sequences[0].pages.size());
        EXPECT_EQ(reads.sequences[0].pages[place++], page.index());
        tokens += end - begin;
      }
      begin = end;
    }
    EXPECT_EQ(reads.sequences[0].pages.size(), place);
    EXPECT_EQ(reads.sequences[0].tokens, tokens);
    EXPECT_GT(tokens, 2000);
  });
}

}  // namespace
}  // namespace kvmesh::bench
