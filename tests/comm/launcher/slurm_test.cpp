#include "comm/launcher/slurm.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

TEST(SlurmLists, FirstHost) {
  EXPECT_EQ(first_slurm_host("node7"), "node7");
  EXPECT_EQ(first_slurm_host("gpu-1,node[3-4]"), "gpu-1");
  EXPECT_EQ(first_slurm_host("node[007-009,12],gpu-1"), "node007");
  EXPECT_EQ(first_slurm_host("node[12,14-15]"), "node12");
  EXPECT_EQ(first_slurm_host("rack[2-3]node[04,07].x"), "rack2node04.x");
  EXPECT_EQ(first_slurm_host(""), "");
}

TEST(SlurmLists, TasksOnANode) {
  EXPECT_EQ(slurm_tasks_on_node("4", 0), 4);
  EXPECT_EQ(slurm_tasks_on_node("4(x2),3,2(x3)", 1), 4);
  EXPECT_EQ(slurm_tasks_on_node("4(x2),3,2(x3)", 2), 3);
  EXPECT_EQ(slurm_tasks_on_node("4(x2),3,2(x3)", 5), 2);
  EXPECT_EQ(slurm_tasks_on_node("4(x2),3,2(x3)", 6), std::nullopt);
  for (const char* wrong : {"", "x", "4(", "4(x", "4(x2", "4(x9)-", "-1"}) {
    EXPECT_EQ(slurm_tasks_on_node(wrong, 10), std::nullopt) << wrong;
  }
}

}  // namespace
}  // namespace kvmesh
