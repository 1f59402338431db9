// The effect of the options of `kvmesh verify`, and the options printed to repeat a case.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "launch/cli/verify_jobs.hpp"

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
    run_on_threads(ranks, [&](Mesh& mesh) { EXPECT_EQ(command_for(place_of(mesh), 7), command); },
                   {.head_parallel = head_parallel, .threads = 1});
  };
  expect(1, 1, "kvmesh verify --device cpu --seed 7 --count 1");
  expect(3, 1, "kvmesh verify --ranks 3 --device cpu --seed 7 --count 1");
  expect(4, 2, "kvmesh verify --ranks 4 --head-parallel 2 --device cpu --seed 7 --count 1");
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  EXPECT_EQ(command_for(place_of(mesh, {.reproducible = true}), 7),
            "kvmesh verify --reproducible --device cpu --seed 7 --count 1");
  EXPECT_EQ(command_for(place_of(mesh, {.kv_scales = ScaleKind::kPerHead}), 7),
            "kvmesh verify --kv-scales per_head --device cpu --seed 7 --count 1");
  const std::vector<std::string> worker =
      worker_command({.rules = {.kv_scales = ScaleKind::kPerTokenAndHead}}, 1, 60);
  EXPECT_EQ(worker[worker.size() - 2], "--kv-scales");
  EXPECT_EQ(worker.back(), "per_token_and_head");
}

// Runs workers that are shell scripts. Returns the exit status and the JSON.
std::pair<int, std::string> run_script(const std::string& script, std::int64_t count) {
  const std::string file = ::testing::TempDir() + "verify_jobs.json";
  Output out;
  const int status = run_verify_jobs({"/bin/sh", "-c", script}, {.jobs = 2},
                                     {.count = count, .seed = 1}, 60, file, out);
  std::ifstream json(file);
  std::string text{std::istreambuf_iterator<char>(json), {}};
  std::remove(file.c_str());
  return {status, text};
}

std::string answer(const CaseOutcome& outcome) {
  const std::string line = line_of(outcome);
  return "echo ready; while read s; do echo '" + line.substr(0, line.size() - 1) + "'; done";
}

TEST(VerifyJobs, AddUpWhatWorkersAnswer) {
  const auto [status, json] = run_script(
      answer({.seed = 1, .steps = 3, .rows = 10, .max_error = 0.25, .kernels = {"a", "b"}}), 6);
  EXPECT_EQ(status, 0);
  for (const char* field : {"\"cases\": 6", "\"failed\": 0", "\"steps\": 18", "\"rows\": 60",
                            "\"max_error\": 0.25", "\"kernels\": 2"}) {
    EXPECT_NE(json.find(field), json.npos) << field << " in " << json;
  }
}

TEST(VerifyJobs, AFailedCaseIsAFailure) {
  const auto [status, json] = run_script(answer({.seed = 1, .failed = true}), 3);
  EXPECT_EQ(status, 1);
  EXPECT_NE(json.find("\"failed\": 3"), json.npos) << json;
}

TEST(VerifyJobs, ACrashIsAFailureOfItsCase) {
  const auto [status, json] = run_script("echo ready; read s; kill -SEGV $$", 9);
  EXPECT_EQ(status, 1);
  EXPECT_NE(json.find("\"cases\": 2"), json.npos) << json;  // of two workers one each
  EXPECT_NE(json.find("\"failed\": 2"), json.npos) << json;
}

TEST(VerifyJobs, AWorkerThatCannotBeginGivesItsStatus) {
  EXPECT_EQ(run_script("exit 2", 3).first, 2);
  Output out;
  EXPECT_THROW(run_verify_jobs({"/nowhere"}, {.jobs = 2}, {.count = 3}, 60, "", out), Error);
}

TEST(VerifyJobs, AreOnePerCaseAtMost) {
  EXPECT_EQ(verify_jobs({.count = 3, .jobs = 5}, "cpu"), 3);
  EXPECT_EQ(verify_jobs({.jobs = 5}, "cpu"), 5);
  EXPECT_EQ(verify_jobs({}, "cpu"), 1);
  EXPECT_EQ(verify_jobs({.count = 1}, "cuda"), 1);
  EXPECT_LE(verify_jobs({}, "cuda"), 16);
}

}  // namespace
}  // namespace kvmesh::launch
