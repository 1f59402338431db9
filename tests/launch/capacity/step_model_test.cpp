// The model of step time against measurements, and its predictions.
#include "launch/capacity/step_model.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

namespace kvmesh::capacity {
namespace {

// "65536,7*4096": tokens in all, and sequences.
struct Batch {
  double tokens = 0, sequences = 0;
};
Batch batch_of(const std::string& text) {
  Batch batch;
  std::stringstream list(text);
  for (std::string part; std::getline(list, part, ',');) {
    const std::size_t star = part.find('*');
    const double count = star == std::string::npos ? 1 : std::stod(part.substr(0, star));
    batch.sequences += count;
    batch.tokens += count * std::stod(part.substr(star == std::string::npos ? 0 : star + 1));
  }
  return batch;
}

// With the way of the point, which a cluster of one node takes only if it is peer. Rows that stay
// with the owners of their keys are not combined.
double predicted(const nlohmann::json& point) {
  StepModel model = h200();
  if (point.value("way", "peer") == "nccl") model.peer = model.nccl;
  const Cluster cluster{.gpus = point["gpus"].get<int>()};
  if (point["op"] == "combine") return combine_us(model, point["rows"].get<int>(), 128, cluster);
  const Batch batch = batch_of(point["lengths"].get<std::string>());
  const Work work{.batch = 1,
                  .context = static_cast<std::int64_t>(batch.tokens),
                  .q_heads = static_cast<int>(batch.sequences) * point["q_heads"].get<int>(),
                  .kv_heads = point["kv_heads"].get<int>(),
                  .k_dim = 128,
                  .v_dim = 128};
  double us = step_us(model, work, cluster);
  if (point["op"] == "attend") us -= model.append_us;
  const bool rows_stay = point.value("scatter", "heads") == "owner";
  if (rows_stay) us -= combine_us(model, work.q_heads, 128, cluster);
  return us;
}

TEST(StepModel, IsWithinATenthOfEveryMeasuredPoint) {
  std::ifstream file(KVMESH_STEP_POINTS);
  const nlohmann::json points = nlohmann::json::parse(file)["points"];
  EXPECT_GE(points.size(), 40u);
  for (const nlohmann::json& point : points) {
    const double us = point["us"].get<double>();
    EXPECT_NEAR(predicted(point), us, 0.1 * us) << point.dump();
  }
}

constexpr Work kLong{
    .batch = 1, .context = 1 << 20, .q_heads = 64, .kv_heads = 8, .k_dim = 128, .v_dim = 128};

TEST(StepModel, GainsFromMoreGpusUntilTheCombineCostsMore) {
  Work work = kLong;
  EXPECT_GT(step_us(h200(), work, {.gpus = 1}), 6 * step_us(h200(), work, {.gpus = 8}));
  EXPECT_EQ(best_parallelism(h200(), work, {.gpus = 8}), 8);
  work.context = 2048;
  EXPECT_EQ(best_parallelism(h200(), work, {.gpus = 8}), 1);
}

// With 8 GPUs a node, 12 need two nodes: six on each.
TEST(StepModel, RecommendsNoMoreGpusThanANodeHasIfTheNextNodeCostsMore) {
  const StepModel model = h200();
  Work work = kLong;
  work.context = 16384;
  EXPECT_LT(step_us(model, work, {.gpus = 8}), step_us(model, work, {.gpus = 12, .nodes = 2}));
  EXPECT_EQ(best_parallelism(model, work, {.gpus = 24, .nodes = 3}), 8);
}

// 10 of 20 GPUs need three nodes of 4, over which they do not divide.
TEST(StepModel, RecommendsAsManyGpusOnEachNode) {
  StepModel model = h200();
  model.node_us = 0;
  Work work = kLong;
  for (work.context = 1024; work.context <= kLong.context; work.context += 512) {
    const int best = best_parallelism(model, work, {.gpus = 20, .nodes = 5});
    EXPECT_TRUE(best <= 4 || best == 20) << best << " GPUs for " << work.context;
  }
}

TEST(StepModel, SpreadsFromTheLengthWhereOneGpuIsAsSlowAsAll) {
  for (int gpus : {2, 8}) {
    const Cluster cluster{.gpus = gpus};
    Work work = kLong;
    work.context = spread_from_tokens(h200(), work, cluster);
    EXPECT_LE(step_us(h200(), work, cluster), step_us(h200(), work, {.gpus = 1}));
    work.context -= 2;
    EXPECT_GT(step_us(h200(), work, cluster), step_us(h200(), work, {.gpus = 1}));
  }
}

TEST(StepModel, CostsMoreAcrossNodes) {
  StepModel model = h200();
  const double outside = combine_us(model, 32, 128, {.gpus = 16, .nodes = 2});
  EXPECT_GT(outside, combine_us(model, 32, 128, {.gpus = 16, .nodes = 1}));
  model.peer = model.nccl;
  const double inside = combine_us(model, 32, 128, {.gpus = 16, .nodes = 1});
  // Half of 32 rows of 516 bytes at 50 GB/s, and the latency.
  EXPECT_NEAR(outside - inside, 5 + 32 * 0.5 * 516 / 50e3, 1e-6);
  EXPECT_EQ(combine_us(h200(), 4096, 128, {.gpus = 1}), 0);
}

// Each of a node's 8 GPUs then sends half of 512 merged rows outward instead of half of 4096.
TEST(StepModel, MergesManyRowsWithinTheNodesFirst) {
  const StepModel model = h200();
  const auto combine = [&](double rows, const Cluster& cluster) {
    return combine_us(model, rows, 128, cluster);
  };
  EXPECT_NEAR(combine(4096, {.gpus = 16, .nodes = 2}),
              combine(4096, {.gpus = 8}) + combine(512, {.gpus = 2, .nodes = 2}), 1e-6);
  EXPECT_LT(combine(32, {.gpus = 16, .nodes = 2}),
            combine(32, {.gpus = 8}) + combine(4, {.gpus = 2, .nodes = 2}));
}

}  // namespace
}  // namespace kvmesh::capacity
