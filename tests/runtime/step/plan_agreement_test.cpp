// Ranks that plan different steps hear of it, all of them, with the rank and the field.
#include "runtime/step/plan_agreement.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace kvmesh {
namespace {

struct Plan {
  std::vector<BatchEntry> batch{{SequenceId(1, 1, 0), 1}, {SequenceId(1, 1, 1), 2, 1}};
  PlanOptions options{};
};

// Expects that each rank is told of `field`, where the last is given another plan; empty: of none.
void expect_told(const std::string& field, const std::function<void(Plan&)>& change) {
  SCOPED_TRACE(field);
  run_loopback(3, [&](Communicator& world) {
    Plan plan;
    if (world.rank().value == 2) change(plan);
    std::string said;
    try {
      check_plans_agree(world, plan.batch, plan.options);
    } catch (const InvalidArgument& error) {
      said = error.what();
    }
    if (field.empty()) {
      EXPECT_EQ(said, "");
    } else {
      EXPECT_NE(said.find(field + " of rank 2"), std::string::npos) << said;
    }
  });
}

MaskMod window(std::int32_t n) { return mods::sliding_window(n); }

ScoreMod slopes(std::vector<float> numbers) { return mods::alibi(Buffer<float>(numbers)); }

TEST(PlanAgreement, NamesWhatDiffers) {
  expect_told("", [](Plan&) {});
  expect_told("the batch", [](Plan& p) { p.batch.pop_back(); });
  expect_told("the batch", [](Plan& p) { std::swap(p.batch[0], p.batch[1]); });
  expect_told("the batch", [](Plan& p) { p.batch[0].append_tokens = 2; });
  expect_told("the batch", [](Plan& p) { p.batch[1].query_tokens = 2; });
  expect_told("scale", [](Plan& p) { p.options.scale = 0.5f; });
  expect_told("scatter", [](Plan& p) { p.options.scatter = Scatter::kHeads; });
  expect_told("strategy", [](Plan& p) { p.options.strategy = CombineStrategy::kAllToAll; });
  expect_told("the limits", [](Plan& p) { p.options.limits = StepLimits{.sequences = 2}; });
  expect_told("q_positions", [](Plan& p) { p.options.q_positions = {0, 1, 2}; });
  expect_told("the mask mod", [](Plan& p) { p.options.mask = {}; });
  expect_told("the mask mod", [](Plan& p) { p.options.mask = window(8); });
  expect_told("the score mod", [](Plan& p) { p.options.score = mods::soft_cap(30); });
}

TEST(PlanAgreement, ComparesGraphsNotObjects) {
  const auto both = [](Plan& p) {
    p.options.mask = window(8);
    p.options.score = slopes({0.5f, 0.25f});
  };
  run_loopback(2, [&](Communicator& world) {
    Plan plan;
    both(plan);  // each rank traces and captures its own
    EXPECT_NO_THROW(check_plans_agree(world, plan.batch, plan.options));
    if (world.rank().value == 1) plan.options.score = slopes({0.5f, 0.26f});
    EXPECT_THROW(check_plans_agree(world, plan.batch, plan.options), InvalidArgument)
        << "numbers of a captured buffer";
  });
}

TEST(PlanAgreement, ComparesBlockMasks) {
  const BlockMaskShape shape{.q_len = 8, .kv_len = 8, .q_block = 4, .kv_block = 4};
  const BlockMask causal = BlockMask::create(mods::causal(), shape);
  const BlockMask full = BlockMask::create({}, shape);
  run_loopback(2, [&](Communicator& world) {
    Plan plan;
    plan.options.block_mask = &causal;
    EXPECT_NO_THROW(check_plans_agree(world, plan.batch, plan.options));
    if (world.rank().value == 1) plan.options.block_mask = &full;
    EXPECT_THROW(check_plans_agree(world, plan.batch, plan.options), InvalidArgument);
  });
}

}  // namespace
}  // namespace kvmesh
