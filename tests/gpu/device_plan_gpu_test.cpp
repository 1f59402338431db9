// Plans on the device: the tasks, the merges, and their rows of the workspace.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/cuda/common/device_mods.hpp"
#include "kernels/cuda/plan/device_plan.hpp"
#include "kernels/cuda/plan/page_lists.hpp"
#include "tests/gpu/gpu_support.hpp"

namespace kvmesh::test {
namespace {

/// A step's tasks and merges, and the rows of the workspace that the plan asks for.
struct PlannedTasks {
  std::vector<cuda::DeviceTask> tasks{};
  std::vector<cuda::DeviceMerge> merges{};
  std::int64_t workspace_rows = 0;
};

struct PlanChoice {
  std::int64_t fixed_split_tokens = 0;
  MaskMod mask{};
  int queries = 1;  ///< of each sequence
  std::optional<cuda::AttendLimits> limits{};
};

/// Plans a step with pages of 16 tokens and 8 query heads per kv head. A task has one query or,
/// with limits, all of a sequence.
PlannedTasks plan_decode(int kv_heads, const std::vector<std::int64_t>& lengths,
                         const PlanChoice& choice = {}) {
  constexpr int kPage = 16, kGroup = 8;
  const cuda::DeviceMods mods(ScoreMod().graph(), choice.mask.graph());
  cuda::DevicePlan::Options options;
  options.shape = {.q_heads = kv_heads * kGroup,
                   .kv_heads = kv_heads,
                   .k_dim = 128,
                   .v_dim = 128,
                   .page_size = kPage};
  options.mask = choice.mask;
  options.launches.fill({.rows = kGroup, .resident_blocks = 396, .multiprocessors = 132});
  if (choice.limits) options.launches[cuda::kShortLaunch].rows = kGroup * choice.queries;
  options.fixed_split_tokens = choice.fixed_split_tokens;
  cuda::DevicePlan plan(kernels(), options, mods, std::nullopt);
  if (choice.limits) plan.reserve(*choice.limits);
  cuda::PageLists lists;
  std::vector<AttendSequence> sequences;
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    std::vector<LocalPage> pages;
    for (std::int32_t page = 0; page * kPage < lengths[s]; ++page) pages.push_back({page, page});
    lists.change(s, 0, pages);
    sequences.push_back(
        {.queries = choice.queries, .kv_len = lengths[s], .appended = 1, .list = s});
  }
  const Stream stream;
  cuda::Upload upload;
  cuda::DevicePlan* const plans[] = {&plan};
  plan_together(plans, lists, {.sequences = sequences}, upload, stream);
  stream.wait();
  PlannedTasks planned{.workspace_rows = plan.workspace_rows()};
  for (const cuda::LaunchKind kind : {cuda::kShortLaunch, cuda::kLongLaunch}) {
    const cuda::PlannedLaunch& launch = plan.launch(kind);
    if (launch.grid == 0) continue;
    const auto tasks = download(launch.tasks, download(launch.task_counts, 1)[0].tasks);
    planned.tasks.insert(planned.tasks.end(), tasks.begin(), tasks.end());
  }
  planned.merges = download(plan.merges(), download(plan.merges_made(), 1)[0]);
  return planned;
}

// Pieces of the same pages, one for each kv head, follow one another; a head's rows of the
// workspace lie together, in the order of its pieces. A short sequence stays whole.
TEST(DevicePlan, PlacesThePiecesOfAllHeadsSideBySide) {
  constexpr int kHeads = 8;
  const auto [tasks, merges, rows] = plan_decode(kHeads, {131072, 100});
  ASSERT_EQ(std::ssize(merges), kHeads);
  const int splits = merges[0].splits;
  ASSERT_EQ(std::ssize(tasks), kHeads * (splits + 1));
  std::int64_t keys = 0;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const std::size_t head = i % kHeads;
    const int piece = static_cast<int>(i / kHeads);
    const cuda::DeviceTask &task = tasks[i], &of_head_0 = tasks[i - head];
    EXPECT_EQ(task.kv_head, static_cast<std::int32_t>(head));
    EXPECT_EQ(task.sequence, piece < splits ? 0 : 1);
    EXPECT_EQ(task.first_visit, of_head_0.first_visit);
    EXPECT_EQ(task.keys, of_head_0.keys);
    if (piece < splits) {
      EXPECT_EQ(task.workspace_row, merges[head].workspace_row + piece * task.rows);
      EXPECT_EQ(std::int64_t{task.first_visit} * 16, keys);
    } else {
      EXPECT_EQ(task.workspace_row, -1);
    }
    if (head == kHeads - 1) keys += task.keys;
  }
  EXPECT_EQ(keys, 131072 + 100);
}

// Whatever else there is to read: a thousand sequences have more pieces than other plans have room
// for.
TEST(DevicePlan, CutsAtFixedPlaces) {
  constexpr int kHeads = 8, kPiece = 1024;
  const std::vector<std::int64_t> few{131072, 100, 1024, 1025}, many(1000, 9000);
  for (const std::vector<std::int64_t>& lengths : {few, many}) {
    const auto [tasks, merges, rows] = plan_decode(kHeads, lengths, {.fixed_split_tokens = kPiece});
    std::vector<std::int64_t> keys(lengths.size() * kHeads);  // of the pieces so far
    std::vector<std::int32_t> visits(keys.size());            // where the next piece begins
    for (const cuda::DeviceTask& task : tasks) {
      const std::size_t block = static_cast<std::size_t>(task.sequence * kHeads + task.kv_head);
      const std::int64_t length = lengths[static_cast<std::size_t>(task.sequence)];
      EXPECT_EQ(task.keys, std::min<std::int64_t>(kPiece, length - keys[block]));
      EXPECT_EQ(task.workspace_row >= 0, length > kPiece);
      if (keys[block] > 0) {
        EXPECT_EQ(task.first_visit, visits[block]);
      }
      keys[block] += task.keys;
      visits[block] = task.first_visit + kPiece / 16;
    }
    for (std::size_t block = 0; block < keys.size(); ++block) {
      EXPECT_EQ(keys[block], lengths[block / kHeads]);
    }
    for (const cuda::DeviceMerge& merge : merges) {
      const std::int64_t length = lengths[static_cast<std::size_t>(merge.first_token)];
      EXPECT_EQ(merge.splits, (length + kPiece - 1) / kPiece);
    }
  }
}

// Also where a mask gives each kv head query blocks of its own. A row past the workspace would lie
// in memory of something else.
TEST(DevicePlan, HasARowOfTheWorkspaceForEachRowOfAPiece) {
  constexpr int kHeads = 4;
  constexpr std::int64_t kPiece = 1024;
  const std::vector<std::int64_t> lengths{2500, 100, 1024, 1030};  // no page is empty
  const std::vector<MaskMod> masks{MaskMod(), mods::causal(),
                                   [](auto, auto h, auto q, auto kv) { return kv <= q + h; }};
  for (std::size_t m = 0; m < masks.size(); ++m) {
    for (const int queries : {1, 2}) {
      for (const bool has_limits : {false, true}) {
        SCOPED_TRACE(fmt::format("mask {}, {} queries, limits {}", m, queries, has_limits));
        PlanChoice choice{.fixed_split_tokens = kPiece, .mask = masks[m], .queries = queries};
        if (has_limits) choice.limits = {.sequences = 4, .queries = queries, .pages = 300};
        const auto [tasks, merges, rows] = plan_decode(kHeads, lengths, choice);
        std::vector<int> uses(static_cast<std::size_t>(rows));
        for (const cuda::DeviceTask& task : tasks) {
          if (task.workspace_row < 0) continue;
          ASSERT_LE(task.workspace_row + task.rows, rows);
          for (int r = 0; r < task.rows; ++r) {
            ++uses[static_cast<std::size_t>(task.workspace_row + r)];
          }
        }
        const auto used = std::ranges::count(uses, 1);
        EXPECT_EQ(used + std::ranges::count(uses, 0), rows) << "two pieces have a row";
        EXPECT_EQ(used, kHeads * 8 * queries * (3 + 2)) << "pieces of the first and the last";
        if (!has_limits) {
          EXPECT_EQ(used, rows) << "none are reserved in vain";
        }
      }
    }
  }
}

// Shared rows get the multiprocessors of their share of the work. The first thread blocks of the
// other launch, for which there is room beside them, have pieces without a claim.
TEST(DevicePlan, SharedRowsLeaveMultiprocessorsToOthers) {
  constexpr std::int32_t kSequences = 32, kSharedPages = 512, kOwnPages = 16;
  constexpr int kMultiprocessors = 132, kShortBlocks = 3;
  const cuda::DeviceMods mods(ScoreMod().graph(), MaskMod().graph());
  cuda::DevicePlan::Options options;
  options.shape = {.q_heads = 64, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .page_size = 16};
  options.may_share = true;
  options.rows_of_own_token = 96;
  options.launches.fill({.rows = 128,
                         .resident_blocks = kMultiprocessors,
                         .multiprocessors = kMultiprocessors,
                         .tile_keys = 128});
  options.launches[cuda::kShortLaunch] = {.rows = 8,
                                          .resident_blocks = kShortBlocks * kMultiprocessors,
                                          .multiprocessors = kMultiprocessors};
  cuda::DevicePlan plan(kernels(), options, mods, std::nullopt);
  cuda::PageLists lists;
  std::vector<std::vector<LocalPage>> pages(kSequences);
  std::vector<AttendSequence> sequences;
  SharedPrefix prefix{.pages = kSharedPages};
  for (std::int32_t s = 0; s < kSequences; ++s) {
    const auto list = static_cast<std::size_t>(s);
    for (std::int32_t page = 0; page < kSharedPages; ++page) pages[list].push_back({page, page});
    for (std::int32_t page = 0; page < kOwnPages; ++page) {
      pages[list].push_back({kSharedPages + s * kOwnPages + page, kSharedPages + page});
    }
    lists.change(list, 0, pages[list]);
    const std::int64_t tokens = 16 * (kSharedPages + kOwnPages);
    sequences.push_back(
        {.queries = 1, .kv_len = tokens, .pages = pages[list], .appended = 1, .list = list});
    prefix.sequences.push_back(s);
  }
  const std::vector<SharedPrefix> prefixes{prefix};
  const SharedPrefixRules rules{.page_size = 16, .most_queries = plan.most_shared_queries()};
  const Stream stream;
  cuda::Upload upload;
  cuda::DevicePlan* const plans[] = {&plan};
  plan_together(plans, lists,
                {.sequences = sequences,
                 .shared = {.sequences = sequences, .shared = prefixes, .rules = rules}},
                upload, stream);
  stream.wait();
  const auto counts = [&](cuda::LaunchKind kind) {
    return download(plan.launch(kind).task_counts, 1)[0];
  };
  const cuda::TaskCounts shared = counts(cuda::kSharedLaunch), own = counts(cuda::kShortLaunch);
  EXPECT_EQ(shared.tasks, 96) << "6 pieces of each of 16 blocks: 8 / 11 of the work";
  EXPECT_EQ(shared.early_blocks, kMultiprocessors);
  EXPECT_EQ(own.early_blocks, kShortBlocks * (kMultiprocessors - shared.tasks));
}

}  // namespace
}  // namespace kvmesh::test
