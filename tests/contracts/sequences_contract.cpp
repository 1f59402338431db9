#include "tests/contracts/sequences_contract.hpp"

#include <algorithm>

#include "kvmesh/draft_trees.hpp"
#include "launch/verify/random_case.hpp"
#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {
namespace {

TEST_P(SequencesContract, RaggedBatches) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    std::vector<BatchEntry> batch;
    for (std::int64_t tokens : {5, 98, 47, 194, 1, 0}) {
      batch.push_back({cache.create(), tokens, std::min<std::int64_t>(tokens, 7)});
    }
    EXPECT_TRUE(cache.step(batch, {}));
    for (BatchEntry& entry : batch) entry = {.sequence = entry.sequence, .append_tokens = 1};
    for (int i = 0; i < 6; ++i) EXPECT_TRUE(cache.step(batch, {}));
    // Tests count a case's kernels by these programs.
    const bool on_gpu = cache.cache().mesh().device().kind == DeviceKind::kCuda;
    EXPECT_EQ(cache.cache().kernel_programs().empty(), !on_gpu);
  });
}

TEST_P(SequencesContract, RanksThatHoldNothing) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {1, 3});
    for (SequenceId sequence : sequences) {
      ASSERT_EQ(cache.allocator().pages(sequence).size(), 1u) << "one rank must hold all of it";
    }
    for (Scatter scatter : {Scatter::kAll, Scatter::kHeads, Scatter::kTokens}) {
      EXPECT_TRUE(cache.step(batch_of(sequences, 0, 1), {.plan = {.scatter = scatter}}));
    }
  });
}

TEST_P(SequencesContract, SequencesWithoutKeysAndBatchesWithoutRows) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const SequenceId empty = cache.create(), full = prompt(cache, 30);
    EXPECT_TRUE(cache.step({}));
    EXPECT_TRUE(cache.step({{empty, 0, 0}}));
    EXPECT_TRUE(cache.step({{full, 3, 0}}));
    EXPECT_TRUE(cache.step({{empty, 0, 0}, {full, 1, 1}}));
    // Queries of a sequence without keys: O = 0, LSE = -inf.
    const StepOptions options{.plan = {.q_positions = {0, 5, 30, 31}}};
    EXPECT_TRUE(cache.step(std::vector<BatchEntry>{{empty, 0, 2}, {full, 0, 2}}, options));
  });
}

TEST_P(SequencesContract, DecodesWhatWasPrefilledInChunks) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const SequenceId sequence = cache.create(), other = prompt(cache, 9);
    for (std::int64_t chunk : {7, 16, 1, 23}) {
      EXPECT_TRUE(cache.step({{other, 1}, {sequence, chunk}}));
    }
    for (int i = 0; i < 9; ++i) EXPECT_TRUE(cache.step({{sequence, 1}}));
  });
}

TEST_P(SequencesContract, RollsSpeculationBack) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {26, 3, 61});
    for (std::int64_t accepted : {0, 4, 2, 1}) {
      EXPECT_TRUE(cache.step(batch_of(sequences, 5), {}));
      for (SequenceId sequence : sequences) {
        cache.truncate(sequence, cache.allocator().length(sequence) - 5 + accepted);
      }
      EXPECT_TRUE(cache.step(batch_of(sequences, 0, 1), {}));
    }
  });
}

constexpr int kDrafts = 7;

/// Drafts as a random tree; the path to one of its tokens is accepted.
struct DraftTree {
  DraftTree(verify::Random& random, std::int64_t first, int tokens) : first(first) {
    for (int i = 0; i < tokens; ++i) {
      parents.push_back(static_cast<std::int32_t>(random.integer(-1, i - 1)));
    }
    accepted = static_cast<std::int32_t>(random.integer(-1, tokens - 1));
  }
  KeptTokens kept(SequenceId sequence) const {
    KeptTokens kept{.sequence = sequence, .begin = first};
    for (std::int32_t i = accepted; i >= 0; i = parents[static_cast<std::size_t>(i)]) {
      kept.kept.insert(kept.kept.begin(), first + i);
    }
    return kept;
  }
  std::int64_t first;
  std::vector<std::int32_t> parents;
  std::int32_t accepted = -1;
};

// Draft, verify, accept: one mask for all steps, whose trees are data.
TEST_P(SequencesContract, KeepsTheAcceptedPathOfDraftTrees) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {26, 3, 61});
    mods::DraftTrees trees(3, kDrafts);
    const StepOptions verify{.plan = {.mask = trees.mask()}};
    for (int round = 0; round < 4; ++round) {
      std::vector<DraftTree> drafts;
      for (int b = 0; b < 3; ++b) {
        const SequenceId sequence = sequences[static_cast<std::size_t>(b)];
        drafts.emplace_back(cache.random(), cache.allocator().length(sequence), kDrafts);
        trees.set(b, drafts.back().first, drafts.back().parents);
      }
      EXPECT_TRUE(cache.step(batch_of(sequences, kDrafts), verify));
      std::vector<KeptTokens> kept;
      for (std::size_t b = 0; b < 3; ++b) kept.push_back(drafts[b].kept(sequences[b]));
      cache.compact(kept);
      EXPECT_EQ(cache.allocator().length(sequences[0]), drafts[0].first + std::ssize(kept[0].kept));
      for (int b = 0; b < 3; ++b) trees.clear(b);
      EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), verify));
    }
  });
}

// Pages that a fork shares stay as they were for the other sequence.
TEST_P(SequencesContract, KeepsTokensOfForks) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const SequenceId parent = prompt(cache, 45), whole = prompt(cache, 30);
    const SequenceId child = cache.fork(parent);
    cache.compact({{child, 20, {21, 22, 30, 44}}, {whole, 4, {4, 5, 6}}});
    EXPECT_EQ(cache.allocator().length(child), 24);
    EXPECT_TRUE(cache.step(batch_of({child, parent, whole}, 0, 2), {}));
    EXPECT_TRUE(cache.step(batch_of({parent, child, whole}, 3), {}));
    cache.compact({{parent, 0, {}}, {child, 26, {}}});
    EXPECT_TRUE(cache.step({{parent, 2}, {child, 1}}));
  });
}

TEST_P(SequencesContract, ForksShareAndDiverge) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const SequenceId parent = prompt(cache, 45);
    const SequenceId child = cache.fork(parent);
    const SequenceId grandchild = cache.fork(child);
    EXPECT_TRUE(cache.step(batch_of({child, parent, grandchild}, 0, 2), {}));
    // All sharers of the last page write to it in one step; then one of them alone.
    EXPECT_TRUE(cache.step(batch_of({grandchild, parent, child}, 2), {}));
    const SequenceId late = cache.fork(child);
    EXPECT_TRUE(cache.step({{late, 6}}));
    EXPECT_TRUE(cache.step(batch_of({parent, late, child, grandchild}, 1, 3), {}));
    cache.erase(parent);
    EXPECT_TRUE(cache.step(batch_of({late, child, grandchild}, 9, 4), {}));
  });
}

/// Steps over forks, of which one shares less than the others in the end.
void decode_forks(CheckedCache& cache, StepOptions options, bool is_shared) {
  options.plan.least_saved_tokens = 1;
  const SequenceId parent = prompt(cache, 300);
  std::vector<BatchEntry> batch{{parent, 0, 1}};
  for (int i = 0; i < 9; ++i) batch.push_back({cache.fork(parent), 0, 1});
  EXPECT_TRUE(cache.step(batch, options)) << "of one length";
  const auto visited = [&](bool shares) {
    PlanOptions plan = options.plan;
    plan.shares_prefixes = shares;
    return cache.cache().plan(batch, plan).tiles().visited;
  };
  EXPECT_LE(visited(true), visited(false));
  // A rank that holds few of the pages has nothing to gain.
  if (is_shared && cache.cache().mesh().kv_parallel() == 1) {
    EXPECT_LT(3 * visited(true), visited(false));
  }
  for (std::size_t i = 0; i < batch.size(); ++i) {
    batch[i].append_tokens = static_cast<std::int64_t>(i) % 4;
    batch[i].query_tokens = 1 + static_cast<std::int64_t>(i % 2);
  }
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(cache.step(batch, options));
  cache.truncate(batch[4].sequence, 151);
  batch[4].append_tokens = 1;
  EXPECT_TRUE(cache.step(batch, options)) << "one that shares fewer pages";
  options.plan.mask = mods::sliding_window(170);
  EXPECT_TRUE(cache.step(batch, options)) << "a window that ends in what is shared";
  for (const BatchEntry& entry : batch) cache.erase(entry.sequence);
}

TEST_P(SequencesContract, ForksReadOnceWhatTheyShare) {
  CacheOptions options = GetParam().small();
  options.pages_per_rank = 200;
  const bool is_shared = !GetParam().reproducible;
  on_each_placement(GetParam(), options, [&](CheckedCache& cache) {
    decode_forks(cache, {.sinks = true}, is_shared);
    StepOptions limited{.replanned = true};
    limited.plan.limits = {.sequences = 11, .query_tokens = 3, .shares_prefixes = true};
    decode_forks(cache, limited, is_shared);
  });
}

TEST_P(SequencesContract, CopiesOnWriteCrossRanks) {
  CacheOptions options = GetParam().small();
  options.pages_per_rank = 4;
  on_each_placement(GetParam(), options, [](CheckedCache& cache) {
    const auto rank_of = [&](SequenceId s) { return cache.allocator().pages(s).back().rank(); };
    const SequenceId parent = prompt(cache, 2);
    const PageRank home = rank_of(parent);
    // Every page is taken; then one becomes free on another rank.
    std::vector<SequenceId> others;
    while (cache.allocator().free_pages() > 0) others.push_back(prompt(cache, 4));
    const auto elsewhere =
        std::ranges::find_if(others, [&](SequenceId s) { return rank_of(s) != home; });
    if (elsewhere != others.end()) cache.erase(*elsewhere);
    const SequenceId child = cache.fork(parent);
    const bool fits = cache.step({{child, 1}});
    EXPECT_EQ(fits, cache.cache().mesh().kv_parallel() > 1) << "one rank has no page for the copy";
    if (!fits) return;
    EXPECT_NE(rank_of(child), home) << "the copy must have moved";
    EXPECT_TRUE(cache.step(batch_of({child, parent}, 1, 3), {}));
  });
}

TEST_P(SequencesContract, ReusesFreedPages) {
  CacheOptions options = GetParam().small();
  options.pages_per_rank = 12;
  on_each_placement(GetParam(), options, [](CheckedCache& cache) {
    const std::int64_t all = 12 * 4 * cache.cache().mesh().kv_parallel();
    const SequenceId first = prompt(cache, all / 2 - 3);
    const SequenceId second = prompt(cache, all / 4 + 1);
    cache.truncate(first, 6);
    const SequenceId third = prompt(cache, all / 2 - 1);
    EXPECT_TRUE(cache.step(batch_of({first, third, second}, 1), {}));
    cache.erase(third);
    cache.truncate(second, 0);
    EXPECT_TRUE(cache.step({{second, all / 2, 2}, {first, 3}}));
  });
}

TEST_P(SequencesContract, ContinuesAfterThePoolsWereFull) {
  CacheOptions options = GetParam().small();
  options.pages_per_rank = 5;
  on_each_placement(GetParam(), options, [](CheckedCache& cache) {
    const std::int64_t all = 5 * 4 * cache.cache().mesh().kv_parallel();
    const SequenceId keeps = prompt(cache, all - 9);
    const SequenceId goes = prompt(cache, 8);
    EXPECT_FALSE(cache.step({{keeps, 1}, {goes, 1}}));
    EXPECT_FALSE(cache.try_reserve(keeps, all));
    EXPECT_TRUE(cache.step({{keeps, 1}, {goes, 0, 2}}));
    cache.erase(goes);
    EXPECT_TRUE(cache.try_reserve(keeps, all - 1));
    for (int i = 0; i < 4; ++i) EXPECT_TRUE(cache.step({{keeps, 2, 4}}));
  });
}

TEST_P(SequencesContract, RandomServing) {
  if (GetParam().random_cases == 0) GTEST_SKIP() << "it draws its own sizes: once is enough";
  GetParam().run([](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    Mesh mesh(comm, {.threads = 1, .device = GetParam().device});
    verify::CaseRunner runner(mesh, {.reproducible = GetParam().reproducible});
    for (std::uint64_t i = 0; i < GetParam().random_cases; ++i) {
      const verify::CaseResult result = runner.run(seed + i);
      for (const std::string& message : result.findings.messages()) {
        ADD_FAILURE() << "KVMESH_SEED=" << seed + i << ", " << result.description << ": "
                      << message;
      }
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
