#include "tests/contracts/attention_contract.hpp"

#include "launch/verify/random_mods.hpp"
#include "tests/contracts/cross_attention.hpp"

namespace kvmesh::test {
namespace {

const std::vector<Dtype> kGivenDtypes{Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};

TEST_P(AttentionContract, AnyHeadsAndDims) {
  for (const ContractShape& shape : GetParam().shapes()) {
    CacheOptions options = with_shape(GetParam().small(), shape);
    options.pages_per_rank = 4 + 80 / shape.page_size;  // 61 + 6 tokens and the rest of their pages
    on_each_placement(GetParam(), options, [](CheckedCache& cache) {
      const std::vector<SequenceId> sequences = prompts(cache, {41, 1, 18});
      EXPECT_TRUE(cache.step(batch_of(sequences, 2, 3), {}));
    });
  }
}

TEST_P(AttentionContract, AnyDtypes) {
  for (Dtype stored : GetParam().stored()) {
    CacheOptions options = GetParam().small();
    options.dtype = stored;
    on_each_placement(GetParam(), options, [](CheckedCache& cache) {
      const SequenceId sequence = cache.create();
      for (Dtype input : kGivenDtypes) {
        for (Dtype output : kGivenDtypes) {
          EXPECT_TRUE(cache.step(std::vector<BatchEntry>{{sequence, 7, 3}},
                                 {.input = input, .output = output}));
        }
      }
    });
  }
}

TEST_P(AttentionContract, AnyScatterAndStrategy) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {33, 2, 60});
    for (Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
      for (CombineStrategy strategy :
           {CombineStrategy::kAuto, CombineStrategy::kReduceScatter, CombineStrategy::kAllToAll}) {
        if (scatter == Scatter::kOwner && strategy == CombineStrategy::kReduceScatter) continue;
        for (bool in_parts : {false, true}) {
          for (bool lse : {false, true}) {
            const StepOptions options{.plan = {.scatter = scatter, .strategy = strategy},
                                      .output = lse ? Dtype::kFloat32 : Dtype::kBFloat16,
                                      .lse = lse,
                                      .in_parts = in_parts};
            EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), options));
          }
        }
      }
    }
  });
}

// One plan for batch after batch: planned in place, and with tensors that have room for more.
TEST_P(AttentionContract, ReplansForAnotherBatch) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {33, 2, 60});
    for (Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
      StepOptions options{.plan = {.scatter = scatter}, .replanned = true};
      EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), options));
      EXPECT_TRUE(cache.step(batch_of(sequences, 17, 9), options));
      options.plan.limits = {.sequences = 5, .query_tokens = 3};
      for (bool replanned : {false, true}) {
        options.replanned = replanned;
        EXPECT_TRUE(cache.step(batch_of(sequences, 2, 3), options));
        EXPECT_TRUE(cache.step({{sequences[1], 1}}, options));
        EXPECT_TRUE(cache.step({}, options));
      }
    }
  });
}

// Ranks that each know the queries of a share of the heads, also where no head is left for some.
TEST_P(AttentionContract, GathersTheQueriesOfAllHeads) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {33, 2, 60});
    for (Dtype input : kGivenDtypes) {
      StepOptions options{.plan = {.scatter = Scatter::kHeads}, .input = input, .gathers = true};
      EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), options));
      options.external = !cache.cache().options().reproducible;
      EXPECT_TRUE(cache.step(batch_of(sequences, 17, 9), options));
      options.external = false;
      options.plan.limits = {.sequences = 5, .query_tokens = 3};
      for (bool replanned : {false, true}) {
        options.replanned = options.in_parts = replanned;
        EXPECT_TRUE(cache.step(batch_of(sequences, 2, 3), options));
        EXPECT_TRUE(cache.step({{sequences[1], 1}}, options));
        EXPECT_TRUE(cache.step({}, options));
      }
    }
  });
}

TEST_P(AttentionContract, AnyMod) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {29, 6, 50});
    const int heads = cache.cache().options().q_heads;
    for (int i = 0; i < GetParam().random_mods; ++i) {
      const auto [mask_name, mask] = verify::random_mask(cache.random(), heads, 50);
      const auto [score_name, score] = verify::random_score(cache.random(), heads);
      SCOPED_TRACE(mask_name + ", " + score_name);
      StepOptions options{.plan = {.mask = mask, .score = score}};
      if (i % 3 == 0) options.plan.scale = 0.5f;
      EXPECT_TRUE(cache.step(batch_of(sequences, i % 2, 3), options));
      EXPECT_TRUE(cache.findings().good());
    }
  });
}

// Each row counts its sink once, however rows are sent and merged; also a row that sees
// no key, and a row of a sequence without keys, which is on no rank.
TEST_P(AttentionContract, SinksCountOnce) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {33, 2, 60});
    StepOptions options{.sinks = true};
    for (Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll}) {
      options.plan.scatter = scatter;
      for (CombineStrategy strategy :
           {CombineStrategy::kReduceScatter, CombineStrategy::kAllToAll}) {
        options.plan.strategy = strategy;
        options.in_parts = !options.in_parts;
        EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), options));
      }
    }
    options.plan = {.mask = mods::sliding_window(7), .score = mods::soft_cap(3.0f)};
    options.output = Dtype::kBFloat16;
    EXPECT_TRUE(cache.step(batch_of(sequences, 1, 2), options));
    options.plan.q_positions = {0, 39, 100, 20, 2, 50, 90, 5};
    options.lse = false;
    EXPECT_TRUE(
        cache.step({{sequences[0], 0, 3}, {cache.create(), 0, 2}, {sequences[2], 0, 3}}, options));
    options = {.plan = {.limits = StepLimits{.sequences = 5, .query_tokens = 3}}, .sinks = true};
    for (bool replanned : {false, true}) {
      options.replanned = replanned;
      EXPECT_TRUE(cache.step(batch_of(sequences, 2, 3), options));
    }
  });
}

TEST_P(AttentionContract, AnyQueryPositions) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {21, 40});
    StepOptions options{.plan = {.q_positions = {0, 1, 2, 3, 39, 0, 20, 100}}};
    EXPECT_TRUE(cache.step(batch_of(sequences, 0, 4), options));
    options.plan.mask = mods::sliding_window(6);
    options.plan.score = mods::alibi(cache.cache().options().q_heads);
    EXPECT_TRUE(cache.step(batch_of(sequences, 0, 4), options));
  });
}

// Also with room for more queries, as a captured step has.
TEST_P(AttentionContract, EncoderKeysAreAppendedOnce) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    cross_attend(cache);
    const StepLimits limits{.sequences = 3, .query_tokens = 5};
    cross_attend(cache, {.plan = {.limits = limits}, .replanned = true});
  });
}

TEST_P(AttentionContract, ExplicitBlockMasks) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {37, 60, 5});
    for (int q_block : {1, 2, 16}) {
      const BlockMaskShape shape{.batch = 3,
                                 .heads = cache.cache().options().q_heads,
                                 .q_len = 5,
                                 .kv_len = 60,
                                 .q_block = q_block,
                                 .kv_block = 4,
                                 .q_start = {32, 55, 0}};
      const verify::CheckedBlockMask created =
          verify::created_block_mask(mods::causal() && MaskMod([](auto b, auto h, auto, auto kv) {
                                       return kv % 7 > h % 3 || kv % (b + 2) == 0;
                                     }),
                                     shape);
      const verify::CheckedBlockMask listed =
          verify::listed_block_mask(cache.random(), mods::sliding_window(9), shape);
      for (const verify::CheckedBlockMask& mask : {created, listed}) {
        const StepOptions options{.plan = {.block_mask = &mask.blocks}, .visible = mask.visible};
        EXPECT_TRUE(cache.step(batch_of(sequences, 0, 5), options));
        EXPECT_TRUE(cache.findings().good());
      }
    }
  });
}

TEST_P(AttentionContract, OneBlockMaskForTheWholeBatch) {
  on_each_placement(GetParam(), GetParam().small(), [](CheckedCache& cache) {
    const std::vector<SequenceId> sequences = prompts(cache, {30, 30});
    const BlockMaskShape shape{
        .q_len = 30, .kv_len = 30, .q_block = 8, .kv_block = 4, .q_start = {0}};
    const verify::CheckedBlockMask mask =
        verify::created_block_mask(mods::sliding_window(11), shape);
    const StepOptions options{.plan = {.block_mask = &mask.blocks}, .visible = mask.visible};
    EXPECT_TRUE(cache.step(batch_of(sequences, 0, 30), options));
  });
}

// More keys per rank than one split holds, so that ranks, splits and threads all merge.
TEST_P(AttentionContract, LongSequences) {
  CacheOptions options = GetParam().small();
  options.layers = 1;
  options.q_heads = 2;
  options.kv_heads = 1;
  options.page_size = 32;
  options.pages_per_rank = 600;
  options.dtype = GetParam().stored().back();
  on_each_placement(GetParam(), options, [](CheckedCache& cache) {
    const std::int64_t tokens = 1200 * cache.cache().mesh().kv_parallel() + 5;
    const SequenceId sequence = prompt(cache, tokens, 1), other = prompt(cache, 70, 1);
    EXPECT_TRUE(cache.step({{other, 1}, {sequence, 1}}));
    EXPECT_TRUE(cache.step({{other, 1}, {sequence, 1}}, {.sinks = true}));
  });
}

// Each rank computes some heads of a model; mods get the heads' numbers in the model.
TEST_P(AttentionContract, HeadsSpreadOverRanksToo) {
  CacheOptions options = GetParam().small();
  options.q_heads = 16;
  options.kv_heads = 8;
  for (int head_parallel : {2, 4, 8}) {
    SCOPED_TRACE(head_parallel);
    const CacheScript script = [](CheckedCache& cache) {
      const std::vector<SequenceId> sequences = prompts(cache, {23, 2, 41});
      const MaskMod mask =
          mods::causal() && MaskMod([](auto, auto h, auto, auto kv) { return kv % (h + 1) == 0; });
      const BlockMaskShape shape{.batch = 3,
                                 .heads = 16,
                                 .q_len = 2,
                                 .kv_len = 41,
                                 .q_block = 2,
                                 .kv_block = 4,
                                 .q_start = {21, 0, 39}};
      const BlockMask blocks = BlockMask::create(mask, shape);
      for (Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll}) {
        StepOptions step{.plan = {.mask = mask, .score = mods::alibi(16), .scatter = scatter},
                         .sinks = scatter != Scatter::kTokens};
        EXPECT_TRUE(cache.step(batch_of(sequences, 0, 2), step));
        step.plan.block_mask = &blocks;
        step.visible = mask;
        EXPECT_TRUE(cache.step(batch_of(sequences, 0, 2), step));
      }
      const SequenceId fork = cache.fork(sequences[0]);
      EXPECT_TRUE(cache.step({{sequences[0], 3}, {fork, 2}}));
    };
    on_each_placement(GetParam(), options, script, head_parallel);
  }
}

}  // namespace
}  // namespace kvmesh::test
