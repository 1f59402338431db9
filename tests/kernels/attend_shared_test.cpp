// Prefixes of pages that several sequences have in common: read once, with the result of reading
// them once for each.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/attend_work.hpp"
#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

struct Fork {
  std::int64_t q_len, kv_len, shared;  // `shared` first pages of sequence 0
};

/// Sequences whose first pages are those of the first.
class SharedCase {
 public:
  SharedCase(CaseSpec spec, const std::vector<Fork>& forks) : case_(with(std::move(spec), forks)) {
    batch_ = case_.batch();
    for (std::size_t s = 1; s < forks.size(); ++s) {
      for (std::int64_t i = 0; i < forks[s].shared; ++i) {
        batch_.pages[static_cast<std::size_t>(batch_.page_indptr[s] + i)] =
            batch_.pages[static_cast<std::size_t>(i)];
      }
    }
  }

  CaseResult run(bool shares) {
    AttentionOptions options = case_.spec().options;
    options.shares_prefixes = shares;
    CaseResult result = case_.outputs();
    result.tiles = run_attention(case_.spec().shape, batch_, options, case_.q(), case_.pool(),
                                 case_.partial(result), 2, case_.sinks());
    return result;
  }

  /// Compares every row with float64 over the pages of its own sequence.
  void check(const CaseResult& result) {
    for (std::int32_t s = 0; s < std::ssize(batch_.kv_lens); ++s) {
      const auto at = static_cast<std::size_t>(s);
      for (std::int64_t t = batch_.q_indptr[at]; t < batch_.q_indptr[at + 1]; ++t) {
        for (std::int32_t h = 0; h < case_.spec().shape.q_heads; ++h) check_row(result, s, t, h);
      }
    }
  }

 private:
  static CaseSpec with(CaseSpec spec, const std::vector<Fork>& forks) {
    spec.sequences.clear();
    for (const Fork& fork : forks) {
      spec.sequences.push_back({.q_len = fork.q_len, .kv_len = fork.kv_len});
    }
    return spec;
  }

  static const float* row(const ConstTensorView& half, std::int32_t page, std::int64_t head,
                          std::int64_t offset) {
    return static_cast<const float*>(half.data) + page * half.stride(0) + head * half.stride(1) +
           offset * half.stride(2);
  }

  void check_row(const CaseResult& result, std::int32_t s, std::int64_t token, std::int32_t head) {
    const CaseSpec& spec = case_.spec();
    const AttentionShape& shape = spec.shape;
    const auto at = static_cast<std::size_t>(s);
    const std::int64_t kv_head = head / (shape.q_heads / shape.kv_heads);
    const ConstTensorView queries = case_.q();
    const float* q = static_cast<const float*>(queries.data) + token * queries.stride(0) +
                     head * queries.stride(1);
    const auto position =
        static_cast<std::int32_t>(batch_.kv_lens[at] - batch_.q_indptr[at + 1] + token);
    double sum = 0;
    std::vector<double> o(static_cast<std::size_t>(shape.v_dim));
    for (std::int64_t i = batch_.page_indptr[at]; i < batch_.page_indptr[at + 1]; ++i) {
      const LocalPage& page = batch_.pages[static_cast<std::size_t>(i)];
      for (std::int32_t offset = 0; offset < shape.page_size; ++offset) {
        const std::int32_t kv = page.logical * shape.page_size + offset;
        if (kv >= batch_.kv_lens[at] || !spec.options.mask(s, head, position, kv)) continue;
        const float* k = row(case_.pool().k, page.page, kv_head, offset);
        const float* v = row(case_.pool().v, page.page, kv_head, offset);
        double dot = 0;
        for (int d = 0; d < shape.k_dim; ++d) dot += double{q[d]} * k[d];
        const auto score = static_cast<float>(dot / std::sqrt(double(shape.k_dim)));
        const double weight = std::exp(double{spec.options.score(score, s, head, position, kv)});
        sum += weight;
        for (std::size_t d = 0; d < o.size(); ++d) o[d] += weight * v[d];
      }
    }
    if (!spec.sinks.empty()) sum += std::exp(double{spec.sinks[static_cast<std::size_t>(head)]});
    EXPECT_NEAR(result.lse.at(token, head), std::log(sum), 1e-5 * std::max(1.0, std::log(sum)));
    for (std::size_t d = 0; d < o.size(); ++d) {
      ASSERT_NEAR(result.o.at(token, head, static_cast<std::int64_t>(d)), o[d] / sum, 2e-5)
          << "sequence " << s << ", token " << token << ", head " << head << ", dim " << d;
    }
  }

  AttentionCase case_;
  AttentionBatch batch_;
};

// Chunks of queries, a sequence that shares less, one that shares nothing, more rows than one task
// takes, a score mod that knows the sequence, sinks.
TEST(AttendShared, IsLikeFloat64) {
  std::vector<Fork> forks{{1, 700, 0}};
  for (std::int64_t i = 0; i < 40; ++i) forks.push_back({1 + i % 3, 660 + 5 * i, 40 - i % 4});
  forks.push_back({1, 300, 0});
  forks.push_back({40, 700, 40});  // too many rows to share
  CaseSpec spec;
  spec.q_size = 1;
  spec.sinks = {0.5f, -1.0f, 2.0f, 0.0f};
  spec.options = {.mask = mods::causal(),
                  .score = ScoreMod([](auto score, auto b, auto h, auto q, auto kv) {
                    return score + 0.01f * to_float((b + h + q - kv) % 7);
                  })};
  SharedCase c(spec, forks);
  const CaseResult alone = c.run(false), shared = c.run(true);
  c.check(alone);
  c.check(shared);
  EXPECT_LT(3 * shared.tiles.visited, alone.tiles.visited);
}

// 32 sequences of 8192 shared and 256 own tokens, 64 query heads of 8 kv heads.
TEST(AttendShared, ReadsALongPrefixOnceForManySequences) {
  const AttentionShape shape{.q_heads = 64, .kv_heads = 8, .k_dim = 8, .v_dim = 8, .page_size = 16};
  std::vector<std::vector<LocalPage>> tables(32);
  std::vector<AttendSequence> sequences;
  for (std::int32_t s = 0; s < 32; ++s) {
    std::vector<LocalPage>& table = tables[static_cast<std::size_t>(s)];
    for (std::int32_t i = 0; i < 512 + 16; ++i) table.push_back({i < 512 ? i : s * 16 + i, i});
    sequences.push_back({.queries = 1, .kv_len = 8448, .pages = table});
  }
  const auto visited = [&](const MaskMod& mask, std::span<const SharedPrefix> shared) {
    AttendWork work;
    plan_attend_work(shape, {sequences, {}, shared}, {.mask = mask}, work);
    return work.tiles.visited;
  };
  const auto shared = find_shared_prefixes(sequences, shared_prefix_rules(shape));
  ASSERT_EQ(shared.size(), 1u);
  EXPECT_EQ(shared[0].pages, 512);
  EXPECT_GE(visited(mods::causal(), {}), 10 * visited(mods::causal(), shared));
  // A window hides the first pages, and a head of its own mask sees others.
  const MaskMod window = mods::sliding_window(4096);
  EXPECT_EQ(visited(window, {}), visited(window, shared));
  const MaskMod heads([](auto, auto h, auto, auto kv) { return kv >= h; });
  EXPECT_EQ(visited(heads, {}), visited(heads, shared));
}

// Of a tree the level that saves most: a short prefix of all, long ones of some.
TEST(SharedPrefixes, TakeTheLevelThatSavesMost) {
  const auto tree = [](std::int32_t all, std::int32_t part) {
    std::vector<std::vector<LocalPage>> tables(8);
    for (std::int32_t s = 0; s < 8; ++s) {
      for (std::int32_t i = 0; i < all + part + 1; ++i) {
        const std::int32_t page = i < all ? i : i < all + part ? 1000 * (s / 4 + 1) + i : 5000 + s;
        tables[static_cast<std::size_t>(s)].push_back({page, i});
      }
    }
    std::vector<AttendSequence> sequences;
    for (const auto& table : tables) {
      sequences.push_back({.queries = 1, .kv_len = 16 * std::ssize(table), .pages = table});
    }
    return find_shared_prefixes(sequences,
                                {.page_size = 16, .most_queries = 1, .least_saved_tokens = 1});
  };
  EXPECT_EQ(tree(100, 5).size(), 1u);
  const auto parts = tree(5, 100);
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].pages, 105);
  EXPECT_EQ(parts[1].sequences, (std::vector<std::int32_t>{4, 5, 6, 7}));
}

// A page that one of the sequences has only in part is no page of the prefix.
TEST(SharedPrefixes, EndWhereASequenceEnds) {
  const std::vector<LocalPage> pages{{3, 0}, {4, 1}, {5, 2}};
  const AttendSequence sequences[] = {{.queries = 1, .kv_len = 48, .pages = pages},
                                      {.queries = 1, .kv_len = 40, .pages = pages},
                                      {.queries = 2, .kv_len = 48, .pages = pages}};
  const auto found = find_shared_prefixes(
      sequences, {.page_size = 16, .most_queries = 1, .least_saved_tokens = 1});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].pages, 2);
  EXPECT_EQ(found[0].sequences, (std::vector<std::int32_t>{0, 1}));
  EXPECT_TRUE(find_shared_prefixes(sequences,
                                   {.page_size = 16, .most_queries = 1, .least_saved_tokens = 33})
                  .empty());
}

}  // namespace
}  // namespace kvmesh::test
