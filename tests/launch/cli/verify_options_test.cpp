// The effect of the options of `kvmesh verify`, and the options printed to repeat a case.
#include <gtest/gtest.h>

#include <chrono>

#include "launch/cli/verify.hpp"

namespace kvmesh::launch {
namespace {

using namespace std::chrono_literals;

TEST(VerifyOnThreads, WaitEndsAtTheDeadline) {
  const VerifyOptions options{.count = 1, .seed = 1};
  Output out;
  EXPECT_THROW(run_verify_on_threads(2, options, {.deadline = 0ms}, "", out), Timeout);
  EXPECT_EQ(run_verify_on_threads(2, options, {.deadline = 60s}, "", out), 0);
}

TEST(VerifyCommand, MakesTheSameMesh) {
  const auto expect = [](int ranks, int head_parallel, const std::string& command) {
    run_on_threads(ranks, [&](Mesh& mesh) { EXPECT_EQ(command_for(mesh, 7), command); },
                   {.head_parallel = head_parallel, .threads = 1});
  };
  expect(1, 1, "kvmesh verify --device cpu --seed 7 --count 1");
  expect(3, 1, "kvmesh verify --ranks 3 --device cpu --seed 7 --count 1");
  expect(4, 2, "kvmesh verify --ranks 4 --head-parallel 2 --device cpu --seed 7 --count 1");
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  EXPECT_EQ(command_for(mesh, 7, true),
            "kvmesh verify --reproducible --device cpu --seed 7 --count 1");
}

}  // namespace
}  // namespace kvmesh::launch
