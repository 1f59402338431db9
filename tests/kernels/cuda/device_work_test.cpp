// How attention is cut for a device: every visit of every block once, thread blocks alike.
#include "kernels/cuda/device_work.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>

#include "tests/support/random.hpp"

namespace kvmesh::cuda {
namespace {

using test::Random;

struct Plan {
  AttentionShape shape;
  AttentionBatch batch;
  AttendWork work;
  DeviceWork device;
};

Plan make_plan(const AttentionShape& shape, const std::vector<std::pair<int, int>>& sequences,
               int short_rows, const LaunchShape& launch) {
  Plan plan{.shape = shape, .batch = {}, .work = {}, .device = {}};
  plan.batch.q_indptr = plan.batch.page_indptr = {0};
  for (const auto& [q_len, kv_len] : sequences) {
    for (std::int32_t page = 0; page * shape.page_size < kv_len; ++page) {
      plan.batch.pages.push_back({page, page});
    }
    plan.batch.kv_lens.push_back(kv_len);
    plan.batch.q_indptr.push_back(plan.batch.q_indptr.back() + q_len);
    plan.batch.page_indptr.push_back(std::ssize(plan.batch.pages));
  }
  AttentionOptions options;
  options.mask = mods::causal();
  plan.work = make_attend_work(shape, plan.batch, options,
                               {.rows_per_block = 128,
                                .short_rows = short_rows,
                                .keys_per_split = std::numeric_limits<int>::max()});
  plan.device = make_device_work(shape, plan.batch.kv_lens, plan.work, short_rows, launch, launch);
  return plan;
}

/// The tasks of one launch, by the thread block that has them.
void expect_shares(const LaunchWork& launch) {
  ASSERT_EQ(launch.task_begin.front(), 0);
  EXPECT_EQ(launch.task_begin.back(), std::ssize(launch.tasks));
  EXPECT_TRUE(std::ranges::is_sorted(launch.task_begin));
}

/// Every block's visits are covered once and in order, its splits have places of their own.
void expect_covers(const Plan& plan) {
  std::map<std::pair<int, int>, std::vector<DeviceTask>> tasks;  // by first token and kv head
  for (const LaunchWork* launch : {&plan.device.short_rows, &plan.device.long_rows}) {
    expect_shares(*launch);
    for (const DeviceTask& task : launch->tasks) {
      tasks[{task.first_token, task.kv_head}].push_back(task);
    }
  }
  EXPECT_EQ(tasks.size(), plan.work.blocks.size());
  std::size_t merges = 0;
  std::int64_t workspace = 0;
  for (const RowBlock& block : plan.work.blocks) {
    const auto& parts = tasks[{static_cast<int>(block.q_begin), block.kv_head}];
    ASSERT_FALSE(parts.empty());
    merges += parts.size() > 1;
    std::int64_t visit = block.visit_begin, keys = 0, workspace_row = parts[0].workspace_row;
    for (const DeviceTask& part : parts) {
      EXPECT_EQ(part.first_visit, visit);
      EXPECT_EQ(part.sequence, block.sequence);
      EXPECT_EQ(part.workspace_row, parts.size() > 1 ? workspace_row : -1);
      if (parts.size() > 1) workspace += part.rows;
      workspace_row += part.rows;
      visit += (part.keys + plan.shape.page_size - 1) / plan.shape.page_size;
      keys += part.keys;
    }
    EXPECT_EQ(visit, block.visit_end);
    std::int64_t expected = 0;
    for (std::int64_t v = block.visit_begin; v < block.visit_end; ++v) {
      const std::int64_t first =
          std::int64_t{plan.work.visits[static_cast<std::size_t>(v)].logical} *
          plan.shape.page_size;
      expected += std::min<std::int64_t>(
          plan.shape.page_size,
          plan.batch.kv_lens[static_cast<std::size_t>(block.sequence)] - first);
    }
    EXPECT_EQ(keys, expected);
  }
  EXPECT_EQ(merges, plan.device.merges.size());
  EXPECT_EQ(workspace, plan.device.workspace_rows);
}

std::int64_t most_keys(const LaunchWork& launch) {
  std::int64_t most = 0;
  for (int b = 0; b < launch.blocks(); ++b) {
    std::int64_t keys = 0;
    for (int t = launch.task_begin[static_cast<std::size_t>(b)];
         t < launch.task_begin[static_cast<std::size_t>(b) + 1]; ++t) {
      keys += launch.tasks[static_cast<std::size_t>(t)].keys;
    }
    most = std::max(most, keys);
  }
  return most;
}

std::int64_t all_keys(const LaunchWork& launch) {
  std::int64_t keys = 0;
  for (const DeviceTask& task : launch.tasks) keys += task.keys;
  return keys;
}

TEST(DeviceWork, ThreadBlocksHaveAlikeShares) {
  const LaunchShape launch{.slots = 264, .tile_keys = 64};
  const std::vector<std::vector<std::pair<int, int>>> batches{
      {{1, 131072}},
      std::vector<std::pair<int, int>>(64, {1, 8192}),
      {{1, 65536}, {1, 4096}, {1, 4096}, {1, 4096}, {1, 300}},
      std::vector<std::pair<int, int>>(34, {1, 8192}),  // 272 blocks: two rounds, the second empty
      {{1, 8192}},
      {{1, 1}}};
  for (const auto& batch : batches) {
    const Plan plan = make_plan({32, 8, 128, 128, 16}, batch, 16, launch);
    expect_covers(plan);
    const LaunchWork& work = plan.device.short_rows;
    // A share, and what a cut may leave with it: four tiles, at least as many for all.
    const std::int64_t share = all_keys(work) / launch.slots;
    if (work.blocks() > launch.slots) {  // whole blocks, in whole rounds
      EXPECT_EQ(plan.device.workspace_rows, 0);
      EXPECT_LE(most_keys(work) * ((work.blocks() + launch.slots - 1) / launch.slots),
                share + share / 16);
      continue;
    }
    EXPECT_LE(most_keys(work), std::max<std::int64_t>(share, 256) + 256 + share / 8)
        << batch.size() << " sequences of " << batch[0].second;
  }
}

TEST(DeviceWork, ManyBlocksAreNotSplitAndTheLongestComeFirst) {
  const Plan plan =
      make_plan({32, 8, 128, 128, 16}, {{2048, 2048}}, 16, {.slots = 100, .tile_keys = 64});
  expect_covers(plan);
  const LaunchWork& work = plan.device.long_rows;
  EXPECT_EQ(work.blocks(), 2048 / 32 * 8);
  EXPECT_EQ(plan.device.workspace_rows, 0);
  EXPECT_TRUE(std::ranges::is_sorted(work.tasks, std::ranges::greater{}, &DeviceTask::keys));
}

TEST(DeviceWork, AnyBatchIsCovered) {
  const std::uint64_t first = test::seed_or(std::random_device{}());
  for (std::uint64_t seed = first; seed < first + 300; ++seed) {
    SCOPED_TRACE("run it again with KVMESH_SEED=" + std::to_string(seed));
    Random random(seed);
    const auto number = [&](int low, int high) {
      return static_cast<int>(random.integer(low, high));
    };
    const int kv_heads = number(1, 4);
    const AttentionShape shape{kv_heads * number(1, 4), kv_heads, 64, 64, number(1, 300)};
    std::vector<std::pair<int, int>> sequences;
    for (int s = number(1, 8); s > 0; --s) {
      const int q_len = random.coin() ? number(0, 4) : number(0, 200);
      sequences.emplace_back(q_len, random.one_in(4) ? number(0, 20000) : number(0, 500));
    }
    expect_covers(
        make_plan(shape, sequences, random.pick(std::vector{16, 32, 64}),
                  {.slots = number(1, 300), .tile_keys = random.pick(std::vector{64, 128})}));
    if (testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace kvmesh::cuda
