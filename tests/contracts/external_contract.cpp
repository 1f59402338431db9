#include "tests/contracts/external_contract.hpp"

#include "launch/verify/random_mods.hpp"
#include "tests/contracts/external_case.hpp"

namespace kvmesh::test {
namespace {

using ExternalScript = std::function<void(ExternalCase&)>;

void with_engine(const Place& place, const ExternalForm& form, const ExternalScript& script) {
  place.run([&](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    const auto mesh = place.mesh(comm, {.threads = 2, .device = place.device});
    ExternalCase engine(*mesh, form, seed);
    script(engine);
    for (const std::string& message : engine.findings().messages()) ADD_FAILURE() << message;
    if (mesh->size() == 1) {
      EXPECT_GT(engine.findings().rows(), 0);
    }
  });
}

ContractShape small_shape(const Place& place) {
  const CacheOptions small = place.small();
  return {small.q_heads,   small.kv_heads, small.k_dim,     small.v_dim,
          small.page_size, small.dtype,    small.page_kind, small.scales};
}

/// Decode, speculation, a prompt, a sequence on one rank, and one without keys.
const std::vector<ExternalSequence> kMixed{{41, 1, 1}, {37, 3, 3}, {60, 19, 19},
                                           {2, 1, 0},  {0, 0, 0},  {23, 2, 0}};

TEST_P(ExternalContract, AnyOrderOfMemory) {
  const ContractShape shape = small_shape(GetParam());
  std::vector<PoolOrder> orders{PoolOrder::kHnd, PoolOrder::kNhd, PoolOrder::kPairNhd,
                                PoolOrder::kSideHnd, PoolOrder::kSideNhd};
  if (has_row_scales(shape)) {
    orders.insert(orders.end(), {PoolOrder::kRowScales, PoolOrder::kHeadScales});
  }
  for (PoolOrder order : orders) {
    SCOPED_TRACE(static_cast<int>(order));
    with_engine(GetParam(), {.shape = shape, .order = order}, [](ExternalCase& engine) {
      engine.batch(kMixed);
      engine.run({});
    });
  }
}

TEST_P(ExternalContract, AnyOwnership) {
  const ContractShape shape = small_shape(GetParam());
  for (std::int64_t interleave : {1, shape.page_size / 2, shape.page_size, 2 * shape.page_size}) {
    for (PoolOrder order : {PoolOrder::kNhd, PoolOrder::kSideHnd}) {
      SCOPED_TRACE(fmt::format("{} {}", interleave, static_cast<int>(order)));
      with_engine(GetParam(),
                  {.shape = shape, .order = order, .interleave = interleave, .block_table = true},
                  [](ExternalCase& engine) {
                    engine.batch(kMixed);
                    engine.run({});
                    engine.batch({{1, 1, 1}, {58, 2, 0}});
                    engine.run({.plan = {.mask = mods::sliding_window(9)}, .sinks = true});
                  });
    }
  }
  for (bool block_table : {false, true}) {
    with_engine(GetParam(), {.shape = shape, .listed = true, .block_table = block_table},
                [](ExternalCase& engine) {
                  engine.batch(kMixed);
                  engine.run({});
                  engine.run({.sinks = true});
                });
  }
}

TEST_P(ExternalContract, AnyScatterInPartsOrWhole) {
  with_engine(GetParam(), {.shape = small_shape(GetParam()), .interleave = 2},
              [](ExternalCase& engine) {
                engine.batch(kMixed);
                for (Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll}) {
                  for (bool whole : {false, true}) {
                    engine.run({.plan = {.scatter = scatter}, .in_parts = !whole, .lse = whole});
                  }
                }
              });
}

// Sequences begin on rank 0, and no rank knows which others have listed pages, so rank 0 owns all
// rows. Those of token lists by turns are the lowest rank's that has one of the tokens.
TEST_P(ExternalContract, RowsOfTheirOwners) {
  const ContractShape shape = small_shape(GetParam());
  for (const ExternalForm& form : {ExternalForm{.shape = shape, .interleave = 2},
                                   ExternalForm{.shape = shape, .listed = true}}) {
    with_engine(GetParam(), form, [&](ExternalCase& engine) {
      engine.batch({{41, 1, 1}, {37, 3, 3}, {2, 1, 0}, {0, 0, 0}, {23, 2, 0}});
      ExternalStep step{.plan = {.scatter = Scatter::kOwner}};
      for (const bool limited : {false, true}) {
        if (limited) step.plan.limits = StepLimits{.sequences = 5, .query_tokens = 3};
        ExternalPlan plan = engine.pool().plan(engine.tables(), step.plan);
        engine.run(plan, step);
        for (std::int64_t token = 0; token < 7; ++token) {
          EXPECT_EQ(plan.participation().owner(token), Rank{0}) << token;
        }
      }
      engine.batch({{41, 3, 0}, {60, 2, 0}});
      step.visible = engine.draw_lists(20) && mods::causal();
      engine.run(step);
    });
  }
}

TEST_P(ExternalContract, AnyMod) {
  with_engine(GetParam(),
              {.shape = small_shape(GetParam()), .order = PoolOrder::kNhd, .interleave = 1},
              [](ExternalCase& engine) {
                engine.batch({{29, 2, 0}, {6, 3, 3}, {50, 3, 1}});
                const int heads = small_shape(GetParam()).q_heads;
                for (int i = 0; i < GetParam().random_mods; ++i) {
                  const auto [mask_name, mask] = verify::random_mask(engine.random(), heads, 50);
                  const auto [score_name, score] = verify::random_score(engine.random(), heads);
                  SCOPED_TRACE(mask_name + ", " + score_name);
                  engine.run({.plan = {.mask = mask, .score = score}});
                  EXPECT_TRUE(engine.findings().good());
                }
                engine.run({.plan = {.q_positions = {0, 28, 5, 2, 0, 49, 20, 3}}});
              });
}

TEST_P(ExternalContract, BlockMasksOfWholePages) {
  const ContractShape shape = small_shape(GetParam());
  for (bool listed : {false, true}) {
    with_engine(GetParam(), {.shape = shape, .listed = listed}, [&](ExternalCase& engine) {
      engine.batch({{37, 5, 0}, {60, 5, 0}, {5, 5, 0}});
      const MaskMod mask = mods::causal() && MaskMod([](auto b, auto h, auto, auto kv) {
                             return kv % 7 > h % 3 || kv % (b + 2) == 0;
                           });
      const BlockMask blocks = BlockMask::create(mask, {.batch = 3,
                                                        .heads = shape.q_heads,
                                                        .q_len = 5,
                                                        .kv_len = 60,
                                                        .q_block = 2,
                                                        .kv_block = shape.page_size,
                                                        .q_start = {32, 55, 0}});
      engine.run({.plan = {.block_mask = &blocks}, .visible = mask});
    });
  }
}

// One plan for batch after batch, with tensors that have room for more.
TEST_P(ExternalContract, ReplannedForAnotherBatch) {
  for (std::int64_t interleave : {std::int64_t{0}, std::int64_t{1}}) {
    with_engine(
        GetParam(), {.shape = small_shape(GetParam()), .interleave = interleave},
        [](ExternalCase& engine) {
          ExternalStep step{.plan = {.limits = StepLimits{.sequences = 5, .query_tokens = 3}}};
          engine.batch({{8, 1, 1}});
          ExternalPlan plan = engine.pool().plan(engine.tables(), step.plan);
          engine.run(plan, step);
          for (const std::vector<ExternalSequence>& batch :
               {std::vector<ExternalSequence>{{41, 3, 3}, {9, 1, 1}, {60, 2, 0}},
                {{60, 1, 1}, {1, 1, 1}, {33, 3, 3}, {2, 2, 2}, {12, 1, 1}},
                {}}) {
            engine.batch(batch);
            engine.pool().replan(plan, engine.tables());
            engine.run(plan, step);
          }
        });
  }
}

// A plan of a step's second kind of layers, beside the first, over the same tables.
TEST_P(ExternalContract, PlansOfOneStepSideBySide) {
  with_engine(GetParam(), {.shape = small_shape(GetParam()), .order = PoolOrder::kSideHnd},
              [](ExternalCase& engine) {
                engine.batch(kMixed);
                const ExternalStep full{};
                const ExternalStep window{.plan = {.mask = mods::sliding_window(5)}};
                ExternalPlan first = engine.pool().plan(engine.tables(), full.plan);
                ExternalPlan second = engine.pool().plan(engine.tables(), window.plan);
                engine.run(second, window);
                engine.run(first, full);
                engine.run(second, window);
              });
}

// Each query sees the positions in its list, and of these what the mask lets it see.
TEST_P(ExternalContract, TokenLists) {
  const ContractShape shape = small_shape(GetParam());
  std::vector<ExternalForm> forms{
      {.shape = shape},
      {.shape = shape, .order = PoolOrder::kNhd, .interleave = 1},
      {.shape = shape, .order = PoolOrder::kSideHnd, .listed = true, .block_table = true}};
  if (has_row_scales(shape)) {
    forms.push_back({.shape = shape, .order = PoolOrder::kRowScales, .interleave = 1});
    forms.push_back({.shape = shape, .order = PoolOrder::kHeadScales, .interleave = 1});
  }
  for (const ExternalForm& form : forms) {
    with_engine(GetParam(), form, [](ExternalCase& engine) {
      engine.batch({{41, 2, 0}, {2, 1, 0}, {0, 0, 0}, {60, 5, 0}});
      const MaskMod any = engine.draw_lists(20);
      engine.run({.plan = {.mask = MaskMod{}}, .visible = any});
      engine.run(
          {.plan = {.scatter = Scatter::kTokens}, .visible = any && mods::causal(), .sinks = true});
      ExternalPlan plan = engine.pool().plan(engine.tables(), {});
      engine.batch({{33, 3, 0}});
      const MaskMod next = engine.draw_lists(7);
      engine.pool().replan(plan, engine.tables());
      engine.run(plan, {.visible = next && mods::causal()});
      ExternalPlan limited = engine.pool().plan(
          engine.tables(), {.limits = StepLimits{.sequences = 4, .query_tokens = 5}});
      EXPECT_EQ(limited.query_tokens(), 20);
      engine.run(limited, {.visible = next && mods::causal()});
      engine.batch({{41, 2, 0}, {2, 1, 0}, {0, 0, 0}, {60, 5, 0}});
      const MaskMod longer = engine.draw_lists(20);
      engine.pool().replan(limited, engine.tables());
      engine.run(limited, {.visible = longer && mods::causal(), .sinks = true});
      engine.batch({{9, 6, 0}});
      static_cast<void>(engine.draw_lists(3));
      EXPECT_THROW(engine.pool().replan(limited, engine.tables()), InvalidArgument);
      engine.batch(kMixed);
      engine.run({});  // whole pages again
    });
  }
}

// Longer lists than the tiles of any kernel, of lengths that none divides.
TEST_P(ExternalContract, TokenListsOfAnyHeadsDimsAndFormats) {
  for (const ContractShape& given : GetParam().shapes()) {
    ContractShape shape = given;
    if (shape.v_dim == 0) shape.v_dim = shape.k_dim;
    for (bool listed : {false, true}) {
      SCOPED_TRACE(fmt::format("{} heads, listed {}", shape.q_heads, listed));
      with_engine(GetParam(), {.shape = shape, .interleave = listed ? 0 : 1, .listed = listed},
                  [&](ExternalCase& engine) {
                    const std::int64_t most = std::min(200, 30 * shape.page_size);
                    engine.batch({{most, 2, 0}, {1, 1, 0}, {most / 3, 1, 0}, {0, 0, 0}});
                    const MaskMod any = engine.draw_lists(300);
                    engine.run({.plan = {.mask = MaskMod{}}, .visible = any, .sinks = listed});
                    const MaskMod few = engine.draw_lists(5);
                    engine.run({.visible = few && mods::causal()});
                  });
    }
  }
}

TEST_P(ExternalContract, TablesInMemoryOfTheDevice) {
  const ContractShape shape = small_shape(GetParam());
  for (bool listed : {false, true}) {
    with_engine(GetParam(), {.shape = shape, .listed = listed, .block_table = listed},
                [](ExternalCase& engine) {
                  const ExternalStep step{};
                  engine.batch({{8, 1, 1}});
                  ExternalPlan plan = engine.pool().plan(engine.tables_on_device(), step.plan);
                  engine.run(plan, step);
                  for (const auto& batch : {kMixed, {}, {{60, 2, 1}, {33, 1, 0}}}) {
                    engine.batch(batch);
                    engine.pool().replan(plan, engine.tables_on_device());
                    engine.run(plan, step);
                  }
                  engine.batch({{41, 2, 0}, {60, 5, 0}});
                  const MaskMod any = engine.draw_lists(20);
                  ExternalPlan lists = engine.pool().plan(engine.tables_on_device());
                  engine.run(lists, {.visible = any && mods::causal()});
                });
  }
}

TEST_P(ExternalContract, AnyHeadsDimsAndFormats) {
  for (const ContractShape& given : GetParam().shapes()) {
    ContractShape shape = given;
    if (shape.v_dim == 0) shape.v_dim = shape.k_dim;
    for (bool listed : {false, true}) {
      with_engine(GetParam(), {.shape = shape, .order = PoolOrder::kNhd, .listed = listed},
                  [&](ExternalCase& engine) {
                    const std::int64_t most = std::min(200, 30 * shape.page_size);
                    engine.batch({{most, 2, 2}, {1, 1, 1}, {most / 3, 1, 0}});
                    engine.run({.sinks = listed});
                  });
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
