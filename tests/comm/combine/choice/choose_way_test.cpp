#include "comm/combine/choice/choose_way.hpp"

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <utility>

namespace kvmesh {
namespace {

using enum CombineStrategy;
using enum WayKind;

constexpr CombineMeans kCpus{.ranks = 4};
constexpr CombineMeans kTwoHosts{.ranks = 4, .hosts = {.hosts = 2, .per_host = 2}};
constexpr CombineMeans kGpus{.ranks = 4, .device = DeviceKind::kCuda, .has_nccl = true};
constexpr CombineMeans kTwoGpus{.ranks = 2, .device = DeviceKind::kCuda, .has_nccl = true};
constexpr CombineMeans kGpusOfTwoHosts{.ranks = 4,
                                       .device = DeviceKind::kCuda,
                                       .has_nccl = true,
                                       .hosts = {.hosts = 2, .per_host = 2}};
constexpr CombineMeans kSharedGpu{.ranks = 4, .device = DeviceKind::kCuda};

// Windows that hold 8 rows of dim 128 for each of four owners, as words: 64 units of 16 bytes each.
constexpr PeerRoom kRoom{.word_slot_bytes = 4 * 8 * 64 * 16};
constexpr CombineMeans kLinkedGpus{
    .ranks = 4, .device = DeviceKind::kCuda, .has_nccl = true, .peer = kRoom};
constexpr CombineMeans kLinkedSharedGpu{
    .ranks = 4, .device = DeviceKind::kCuda, .peer = kRoom, .shares_gpus = true};

// 129 floats per row, to three other ranks.
constexpr CombineShape kSmall{1, 8, 128}, kBelow4MiB{2709, 1, 128}, kAbove4MiB{2710, 1, 128};

struct Choice {
  CombineMeans means;
  CombineShape shape;
  Scatter scatter;
  CombineStrategy asked;
  bool has_limits;
  CombineChoice expected;
};

// The table of all decisions.
const Choice kChoices[] = {
    // kAuto on the CPU is all-to-all.
    {kCpus, kSmall, Scatter::kAll, kAuto, false, {kHost, kAllToAll, true}},
    {kCpus, kAbove4MiB, Scatter::kAll, kAuto, false, {kHost, kAllToAll, true}},
    {kCpus, kSmall, Scatter::kHeads, kReduceScatter, false, {kHost, kReduceScatter, true}},
    // Hosts merge before they send, where that saves more than 64 KiB of rows that can be divided.
    {kTwoHosts, {253, 1, 128}, Scatter::kAll, kAuto, false, {kHost, kAllToAll, true}},
    {kTwoHosts, {255, 1, 128}, Scatter::kAll, kAuto, false, {kHierarchical, kAllToAll, true}},
    {kTwoHosts, {64, 4, 128}, Scatter::kHeads, kAuto, false, {kHierarchical, kAllToAll, true}},
    {kTwoHosts, {64, 6, 128}, Scatter::kHeads, kAuto, false, {kHost, kAllToAll, true}},
    {kTwoHosts, {64, 4, 128}, Scatter::kTokens, kAuto, false, {kHost, kAllToAll, true}},
    // GPUs of several hosts do so where it saves each of them more than 640 KiB; over NCCL alone.
    {kGpusOfTwoHosts, {1270, 4, 128}, Scatter::kHeads, kAuto, true, {kNccl, kAllToAll, false}},
    {kGpusOfTwoHosts,
     {1271, 4, 128},
     Scatter::kHeads,
     kAuto,
     true,
     {kHierarchical, kAllToAll, false}},
    {kGpusOfTwoHosts,
     {1271, 4, 128},
     Scatter::kAll,
     kReduceScatter,
     false,
     {kNccl, kReduceScatter, true}},
    {kGpusOfTwoHosts, {1271, 6, 128}, Scatter::kHeads, kAuto, false, {kNccl, kAllToAll, true}},
    // GPUs without a common NCCL group go by way of the host, which does as it would on the CPU.
    {kSharedGpu, kSmall, Scatter::kAll, kAuto, false, {kStaged, kAllToAll, true}},
    {kSharedGpu, kAbove4MiB, Scatter::kAll, kAuto, false, {kStaged, kAllToAll, true}},
    // kAuto over NCCL is reduce-scatter to all of more than two ranks past 4 MiB.
    {kGpus, kSmall, Scatter::kAll, kAuto, false, {kNccl, kAllToAll, true}},
    {kGpus, kBelow4MiB, Scatter::kAll, kAuto, false, {kNccl, kAllToAll, true}},
    {kGpus, kAbove4MiB, Scatter::kAll, kAuto, false, {kNccl, kReduceScatter, true}},
    {kGpus, kAbove4MiB, Scatter::kTokens, kAuto, false, {kNccl, kAllToAll, true}},
    {kTwoGpus, {1 << 20, 1, 128}, Scatter::kAll, kAuto, false, {kNccl, kAllToAll, true}},
    {kGpus, kAbove4MiB, Scatter::kAll, kAllToAll, false, {kNccl, kAllToAll, true}},
    {kGpus, kSmall, Scatter::kAll, kAllReduce, false, {kNccl, kAllReduce, true}},
    // Rows that fit into a window go by peer, unless ranks share a GPU.
    {kLinkedGpus, {4, 8, 128}, Scatter::kHeads, kAuto, false, {kPeer, kAllToAll, true}},
    {kLinkedGpus, {1, 8, 128}, Scatter::kAll, kAuto, false, {kPeer, kAllToAll, true}},
    {kLinkedGpus, {5, 8, 128}, Scatter::kHeads, kAuto, false, {kNccl, kAllToAll, true}},
    {kLinkedGpus,
     {4, 8, 128},
     Scatter::kHeads,
     kReduceScatter,
     false,
     {kNccl, kReduceScatter, true}},
    {kLinkedSharedGpu, {4, 8, 128}, Scatter::kHeads, kAuto, false, {kStaged, kAllToAll, true}},
    // Its kernel reads the mask, so a graph may have one.
    {kLinkedGpus, {4, 8, 128}, Scatter::kHeads, kAuto, true, {kPeer, kAllToAll, true}},
    // With limits every rank takes part in every row, of the other ways.
    {kCpus, kSmall, Scatter::kAll, kAuto, true, {kHost, kAllToAll, false}},
    {kSharedGpu, kSmall, Scatter::kAll, kAuto, true, {kStaged, kAllToAll, false}},
    {kGpus, kSmall, Scatter::kAll, kReduceScatter, true, {kNccl, kReduceScatter, false}},
    // The owners of tokens are in the mask. Captured messages do not follow it, and go to all.
    {kCpus, kSmall, Scatter::kOwner, kAuto, true, {kHost, kAllToAll, true}},
    {kGpus, kSmall, Scatter::kOwner, kAuto, false, {kNccl, kAllToAll, true}},
    {kGpus, kSmall, Scatter::kOwner, kAuto, true, {kNccl, kAllToAll, false}},
    {kGpus, kAbove4MiB, Scatter::kOwner, kAuto, true, {kNccl, kAllToAll, false}},
    {kSharedGpu, kSmall, Scatter::kOwner, kAuto, true, {kStaged, kAllToAll, true}},
    {kLinkedGpus, kSmall, Scatter::kOwner, kAuto, true, {kPeer, kAllToAll, true}},
};

TEST(ChooseWay, GraphsOverNcclGiveTheRowsOfOwnersToAllRanks) {
  const auto scatter = [](const CombineMeans& means, Scatter asked, bool has_limits) {
    return choose_way(means, kSmall, {.scatter = asked}, has_limits).scatter;
  };
  EXPECT_EQ(scatter(kGpus, Scatter::kOwner, true), Scatter::kAll);
  EXPECT_EQ(scatter(kGpus, Scatter::kOwner, false), Scatter::kOwner);
  EXPECT_EQ(scatter(kGpus, Scatter::kHeads, true), Scatter::kHeads);
  EXPECT_EQ(scatter(kLinkedGpus, Scatter::kOwner, true), Scatter::kOwner);
  EXPECT_EQ(scatter(kSharedGpu, Scatter::kOwner, true), Scatter::kOwner);
}

TEST(ChooseWay, FollowsTheTable) {
  for (const Choice& row : kChoices) {
    SCOPED_TRACE("row " + std::to_string(&row - kChoices));
    const CombineChoice choice = choose_way(
        row.means, row.shape, {.scatter = row.scatter, .strategy = row.asked}, row.has_limits);
    EXPECT_EQ(name(choice.way), name(row.expected.way));
    EXPECT_EQ(name(choice.strategy), name(row.expected.strategy));
    EXPECT_EQ(choice.has_mask, row.expected.has_mask);
  }
}

TEST(ChooseWay, OptionsComeBeforeTheEnvironment) {
  constexpr CombineShape kFits{4, 8, 128}, kLarge{5, 8, 128};
  const auto chosen = [](CombineMeans means, const CombineShape& shape,
                         std::optional<WayKind> asked, std::optional<WayKind> preferred) {
    means.preferred = preferred;
    return choose_way(means, shape, {.scatter = Scatter::kHeads, .way = asked}, false).way;
  };
  EXPECT_EQ(chosen(kLinkedGpus, kFits, kNccl, std::nullopt), kNccl);
  EXPECT_EQ(chosen(kLinkedGpus, kFits, std::nullopt, kStaged), kStaged);
  EXPECT_EQ(chosen(kLinkedGpus, kFits, kNccl, kStaged), kNccl);
  EXPECT_EQ(chosen(kLinkedSharedGpu, kFits, kPeer, std::nullopt), kPeer);
  EXPECT_EQ(chosen(kLinkedGpus, kLarge, kPeer, std::nullopt), kNccl) << "does not fit";
  EXPECT_EQ(chosen(kGpus, kFits, std::nullopt, kPeer), kNccl) << "the environment only prefers";
  EXPECT_THROW(chosen(kGpus, kFits, kPeer, std::nullopt), InvalidArgument);
  EXPECT_THROW(chosen(kCpus, kFits, kStaged, std::nullopt), InvalidArgument);
  EXPECT_THROW(choose_way(kLinkedGpus, kFits, {.strategy = kReduceScatter, .way = kPeer}, false),
               InvalidArgument);
}

// As combines to heads of as many bytes, but without a step within hosts.
TEST(ChooseGatherWay, TakesTheFirstThatTheGroupHas) {
  constexpr CombineShape kFits{4, 8, 128}, kLarge{5, 8, 128};
  const auto chosen = [](CombineMeans means, const CombineShape& rows, Dtype dtype,
                         std::optional<WayKind> asked = {}, std::optional<WayKind> preferred = {}) {
    means.preferred = preferred;
    return choose_gather_way(means, rows, dtype, asked);
  };
  constexpr Dtype kFloat = Dtype::kFloat32, kHalf = Dtype::kBFloat16;
  EXPECT_EQ(chosen(kLinkedGpus, kFits, kFloat), kPeer);
  EXPECT_EQ(chosen(kLinkedGpus, kLarge, kFloat), kNccl) << "does not fit";
  EXPECT_EQ(chosen(kLinkedGpus, kLarge, kHalf), kPeer) << "half as many bytes";
  EXPECT_EQ(chosen(kLinkedGpus, kFits, kFloat, kNccl), kNccl);
  EXPECT_EQ(chosen(kLinkedGpus, kFits, kFloat, {}, kStaged), kStaged);
  EXPECT_EQ(chosen(kLinkedSharedGpu, kFits, kFloat), kStaged) << "they would take turns";
  EXPECT_EQ(chosen(kLinkedSharedGpu, kFits, kFloat, kPeer), kPeer);
  EXPECT_EQ(chosen(kGpusOfTwoHosts, {5000, 4, 128}, kFloat), kNccl);
  EXPECT_EQ(chosen(kGpusOfTwoHosts, kFits, kFloat, kHierarchical), kNccl);
  EXPECT_EQ(chosen(kTwoHosts, {5000, 4, 128}, kFloat, {}, kHierarchical), kHost);
  EXPECT_EQ(chosen(kTwoHosts, {5000, 4, 128}, kFloat, kHierarchical), kHost);
  EXPECT_THROW(chosen(kGpus, kFits, kFloat, kPeer), InvalidArgument);
}

/// A table in which each way takes as long for all rows.
WayTable times(std::initializer_list<std::pair<WayStrategy, double>> ways) {
  WayTable table;
  for (const auto& [way, microseconds] : ways) {
    for (const Scatter scatter : {Scatter::kHeads, Scatter::kAll}) {
      table.add(way, scatter, {1000, microseconds});
      table.add(way, scatter, {1000000, microseconds});
    }
  }
  return table;
}

/// Ranks that share a GPU wait for one another there: a measurement that says otherwise had luck.
TEST(ChooseWay, ATableNeverChoosesPeersThatShareAGpu) {
  const WayTable fast_peer =
      times({{{WayKind::kPeer, kAllToAll}, 1}, {{WayKind::kStaged, kAllToAll}, 30}});
  CombineMeans means = kLinkedSharedGpu;
  means.table = &fast_peer;
  for (const Scatter scatter : {Scatter::kHeads, Scatter::kAll})
    EXPECT_EQ(choose_way(means, kSmall, {.scatter = scatter}, true).way, kStaged) << name(scatter);
}

TEST(ChooseWay, ATableComesBeforeTheRule) {
  const WayTable slow_peer = times({{{WayKind::kPeer, kAllToAll}, 30},
                                    {{WayKind::kNccl, kAllToAll}, 20},
                                    {{WayKind::kNccl, kReduceScatter}, 10},
                                    {{WayKind::kStaged, kAllToAll}, 1}});
  const auto chosen = [&](CombineMeans means, Scatter scatter, const CombineOptions& options = {}) {
    means.table = &slow_peer;
    CombineOptions asked = options;
    asked.scatter = scatter;
    const CombineChoice choice = choose_way(means, kSmall, asked, true);
    EXPECT_EQ(choice.has_mask, scatter == Scatter::kOwner || choice.way == kPeer);
    return std::pair(choice.way, choice.strategy);
  };
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kHeads), std::pair(kNccl, kAllToAll)) << "not staged";
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kTokens), std::pair(kNccl, kAllToAll));
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kAll), std::pair(kNccl, kAllToAll)) << "no reduction";
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kOwner), std::pair(kPeer, kAllToAll));
  EXPECT_EQ(chosen(kTwoGpus, Scatter::kAll), std::pair(kNccl, kAllToAll)) << "of two ranks";
  // A request stays; the table decides the rest.
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kAll, {.way = kPeer}), std::pair(kPeer, kAllToAll));
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kAll, {.way = kNccl}), std::pair(kNccl, kAllToAll));
  EXPECT_EQ(chosen(kLinkedGpus, Scatter::kAll, {.strategy = kReduceScatter}),
            std::pair(kNccl, kReduceScatter));
  EXPECT_EQ(chosen(kLinkedSharedGpu, Scatter::kAll), std::pair(kStaged, kAllToAll));
  CombineMeans preferring = kLinkedGpus;
  preferring.preferred = kPeer;
  EXPECT_EQ(chosen(preferring, Scatter::kHeads), std::pair(kPeer, kAllToAll));
}

TEST(ChooseWay, ATableMayReplaceAReduction) {
  const auto chosen = [](double sends, double reduces, const CombineShape& shape) {
    const WayTable table =
        times({{{WayKind::kNccl, kAllToAll}, sends}, {{WayKind::kNccl, kReduceScatter}, reduces}});
    CombineMeans means = kGpus;
    means.table = &table;
    return choose_way(means, shape, {.scatter = Scatter::kAll}, false).strategy;
  };
  EXPECT_EQ(chosen(20, 50, kAbove4MiB), kAllToAll);
  EXPECT_EQ(chosen(45, 50, kAbove4MiB), kReduceScatter) << "not clearly faster";
  EXPECT_EQ(chosen(50, 20, kBelow4MiB), kAllToAll) << "its bits would depend on other rows";
}

TEST(ChooseWay, ATableReplacesTheBytesThatHostsSave) {
  constexpr CombineShape kFew{8, 4, 128}, kMany{512, 4, 128};
  const auto chosen = [](double host, double hierarchical, const CombineShape& shape) {
    const WayTable table = times(
        {{{WayKind::kHost, kAllToAll}, host}, {{WayKind::kHierarchical, kAllToAll}, hierarchical}});
    CombineMeans means = kTwoHosts;
    means.table = &table;
    return choose_way(means, shape, {.scatter = Scatter::kHeads}, false).way;
  };
  for (const CombineShape& shape : {kFew, kMany}) {
    EXPECT_EQ(chosen(100, 50, shape), kHierarchical);
    EXPECT_EQ(chosen(50, 100, shape), kHost);
  }
  EXPECT_EQ(chosen(100, 95, kFew), kHost) << "as the rule has it, unless it is clearly slower";
  EXPECT_EQ(chosen(95, 100, kMany), kHierarchical);
}

TEST(ChooseWay, RejectsStrategyWithoutAWay) {
  for (const CombineMeans& means : {kCpus, kSharedGpu}) {
    EXPECT_THROW(choose_way(means, kSmall, {.strategy = kAllReduce}, false), InvalidArgument);
  }
}

}  // namespace
}  // namespace kvmesh
