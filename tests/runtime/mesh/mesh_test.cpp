// A mesh's arrangement of its ranks, and the options that it refuses.
#include "kvmesh/mesh.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tests/support/environment.hpp"

namespace kvmesh {
namespace {

// The world ranks of a communicator's members, in its order.
std::vector<int> members(Mesh& mesh, Communicator& comm) {
  return all_gather_value(comm, int{mesh.rank().value});
}

TEST(Mesh, ConsecutiveRanksLieAlongTheHeads) {
  const auto body = [](Mesh& mesh) {
    const int rank = mesh.rank().value;
    EXPECT_EQ(mesh.size(), 6);
    EXPECT_EQ(mesh.kv_parallel(), 3);
    EXPECT_EQ(mesh.head_parallel(), 2);
    EXPECT_EQ(mesh.kv_rank().value, rank / 2);
    EXPECT_EQ(mesh.head_rank(), rank % 2);
    EXPECT_EQ(members(mesh, mesh.kv_comm()), (std::vector{rank % 2, rank % 2 + 2, rank % 2 + 4}));
    EXPECT_EQ(members(mesh, mesh.head_comm()), (std::vector{rank / 2 * 2, rank / 2 * 2 + 1}));
    EXPECT_EQ(members(mesh, mesh.world()), (std::vector{0, 1, 2, 3, 4, 5}));
  };
  run_on_threads(6, body, {.head_parallel = 2, .threads = 1});
}

TEST(Mesh, GivesAllRanksToTheKeysByDefault) {
  run_on_threads(4, [](Mesh& mesh) {
    EXPECT_EQ(mesh.kv_parallel(), 4);
    EXPECT_EQ(mesh.head_parallel(), 1);
    EXPECT_EQ(mesh.kv_rank(), mesh.rank());
    EXPECT_EQ(mesh.head_rank(), 0);
  });
}

TEST(Mesh, ErrorsOfItsGroupsNameWorldRanks) {
  const auto body = [](Mesh& mesh) {
    mesh.world().set_deadline(std::chrono::seconds(20));
    mesh.kv_comm().set_deadline(std::chrono::milliseconds(100));
    barrier(mesh.world());
    if (mesh.rank().value == 1) {
      try {
        barrier(mesh.kv_comm(), "here");
        ADD_FAILURE() << "rank 3 did not come";
      } catch (const Timeout& error) {
        EXPECT_STREQ(error.what(), "rank 1 waited 100 ms in here for rank 3");
      }
    }
    const int kv_rank = mesh.kv_rank().value;
    EXPECT_EQ(mesh.head_comm().name_of(Rank{1}), Rank{kv_rank * 2 + 1});
    barrier(mesh.world());
  };
  run_on_threads(4, body, {.head_parallel = 2, .threads = 1});
}

TEST(Mesh, TakesItsPageRankFromTheMembership) {
  run_on_threads(4, [](Mesh& mesh) { EXPECT_EQ(mesh.page_rank().value, mesh.kv_rank().value); });
  const auto body = [](Mesh& mesh) {
    EXPECT_EQ(mesh.page_rank().value, 1 - mesh.kv_rank().value);
    EXPECT_EQ(mesh.membership().epoch(), 3u);
  };
  run_on_threads(4, body, {.head_parallel = 2, .membership = Membership(3, {Rank{1}, Rank{0}})});
}

TEST(Mesh, RejectsHeadParallelThatDoesNotDivideTheRanks) {
  for (int heads : {-2, 0, 3, 8}) {
    const auto nothing = [](Mesh&) {};
    EXPECT_THROW(run_on_threads(4, nothing, {.head_parallel = heads}), InvalidArgument) << heads;
  }
}

// The errors of three ranks whose mesh options differ on rank 2.
std::vector<std::string> said_to(const std::function<void(MeshOptions&)>& change) {
  std::vector<std::string> said(3);
  run_loopback(3, [&](Communicator& world) {
    MeshOptions options{.threads = 1, .deadline = std::chrono::seconds(10)};
    if (world.rank().value == 2) change(options);
    try {
      Mesh mesh(world, options);
    } catch (const InvalidArgument& error) {
      said[static_cast<std::size_t>(world.rank().value)] = error.what();
    }
  });
  return said;
}

TEST(Mesh, NamesTheDifferentOptionOnEveryRank) {
  const auto expect_all = [](const std::vector<std::string>& said, const std::string& text) {
    for (const std::string& each : said) EXPECT_NE(each.find(text), std::string::npos) << each;
  };
  expect_all(said_to([](MeshOptions& o) { o.head_parallel = 3; }),
             "mesh: head_parallel is 1 on rank 0 and 3 on rank 2");
  expect_all(said_to([](MeshOptions& o) { o.makes_nccl = false; }),
             "mesh: makes_nccl is 1 on rank 0 and 0 on rank 2");
  expect_all(said_to([](MeshOptions& o) { o.peer_window_bytes = 0; }),
             "mesh: peer_window_bytes is 67108864 on rank 0 and 0 on rank 2");
  const auto order = [](std::uint64_t epoch) {
    return Membership(epoch, {Rank{1}, Rank{2}, Rank{0}});
  };
  expect_all(said_to([&](MeshOptions& o) { o.membership = order(4); }),
             "mesh: the membership's epoch is 0 on rank 0 and 4 on rank 2");
  expect_all(said_to([&](MeshOptions& o) { o.membership = order(0); }),
             "mesh: the hash of the membership's holders is");
  expect_all(said_to([](MeshOptions& o) { o.membership = Membership(2); }),
             "mesh: a membership of 2 ranks, kv_parallel is 3");
  expect_all(said_to([](MeshOptions& o) { o.threads = -1; }), "-1 threads");
  expect_all(said_to([](MeshOptions& o) { o.threads = 2000; }), "a pool of 2000 threads");
  expect_all(said_to([](MeshOptions& o) { o.deadline = std::chrono::milliseconds(-1); }), "-1");
  for (const std::string& each : said_to([](MeshOptions& o) {
         o.threads = 2;
         o.deadline = std::chrono::seconds(11);
       }))
    EXPECT_EQ(each, "");
}

TEST(Mesh, RejectsVariablesThatNameNothing) {
  for (const char* name : {"KVMESH_COMBINE_WAY", "KVMESH_COMBINE_TABLE"}) {
    const test::Variable wrong(name, "fastest");
    for (const std::string& each : said_to([](MeshOptions&) {})) {
      EXPECT_NE(each.find(std::string(name) + "=fastest"), std::string::npos) << each;
    }
  }
}

TEST(Mesh, HasTheRequestedThreads) {
  Mesh three(make_single_communicator(), {.threads = 3});
  EXPECT_EQ(three.threads().threads(), 3);
  Mesh by_default(make_single_communicator());
  EXPECT_GE(by_default.threads().threads(), 1);
  EXPECT_THROW(Mesh(make_single_communicator(), {.threads = -1}), InvalidArgument);
}

TEST(Mesh, DividesTheCoresAmongTheRanksOfAProcess) {
  Mesh alone(make_single_communicator());
  const int all = alone.threads().threads();
  run_on_threads(4, [&](Mesh& mesh) { EXPECT_EQ(mesh.threads().threads(), std::max(1, all / 4)); });
}

TEST(Mesh, ReportsMissingCuda) {
  try {
    Mesh mesh(make_single_communicator(), {.device = DeviceChoice::kCuda});
    FAIL() << "made a mesh of GPUs";
  } catch (const Unsupported& error) {
    EXPECT_NE(std::string(error.what()).find("CUDA"), std::string::npos) << error.what();
  }
  for (DeviceChoice device : {DeviceChoice::kAuto, DeviceChoice::kCpu}) {
    EXPECT_EQ(Mesh(make_single_communicator(), {.device = device}).size(), 1);
  }
}

TEST(Mesh, ReadsDeviceNames) {
  EXPECT_EQ(device_choice_from("auto"), DeviceChoice::kAuto);
  EXPECT_EQ(device_choice_from("cpu"), DeviceChoice::kCpu);
  EXPECT_EQ(device_choice_from("cuda"), DeviceChoice::kCuda);
  for (const char* wrong : {"", "gpu", "CPU", "cuda:0"}) {
    EXPECT_THROW(device_choice_from(wrong), InvalidArgument) << wrong;
  }
}

TEST(Mesh, IsOneRankWithoutALauncher) {
  ASSERT_FALSE(MpiSession::launched_by_mpirun());
  Mesh mesh = Mesh::from_launcher();
  EXPECT_EQ(mesh.size(), 1);
  EXPECT_EQ(mesh.world().kind(), make_single_communicator()->kind());
}

TEST(Mesh, RethrowsTheErrorOfARank) {
  const auto body = [](Mesh& mesh) {
    if (mesh.rank().value == 1) throw Unsupported("rank 1 gives up");
    barrier(mesh.world());
  };
  EXPECT_THROW(run_on_threads(3, body), Unsupported);
}

}  // namespace
}  // namespace kvmesh
