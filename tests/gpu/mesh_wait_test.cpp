// The host's waits for a GPU end, also where the GPU does not.
#include <gtest/gtest.h>

#include "core/cuda/device_wait.hpp"
#include "kvmesh/kvmesh.hpp"
#include "tests/gpu/held_stream.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

template <class Wait>
void expect_late(const Wait& wait, const std::string& operation) {
  const auto start = std::chrono::steady_clock::now();
  try {
    wait();
    ADD_FAILURE() << "it did not wait";
  } catch (const Timeout& error) {
    EXPECT_EQ(error.operation(), operation);
    EXPECT_TRUE(error.late().empty());
    EXPECT_NE(std::string(error.what()).find("its own device"), std::string::npos);
  }
  const auto waited = std::chrono::steady_clock::now() - start;
  EXPECT_GE(waited, 100ms);
  EXPECT_LT(waited, 5s);
}

TEST(MeshOptionsOfGpus, NameARanksGpu) {
  MeshOptions options{.threads = 1, .device = DeviceChoice::kCuda};
  const int last = cuda_device_count() - 1;
  options.gpu = last;
  EXPECT_EQ(Mesh(make_single_communicator(), options).device(), (Device{DeviceKind::kCuda, last}));
  for (const int none : {-1, last + 1}) {
    options.gpu = none;
    EXPECT_THROW(Mesh(make_single_communicator(), options), InvalidArgument);
  }
}

TEST(MeshWait, EndsAtTheDeadline) {
  Mesh mesh(make_single_communicator(),
            {.threads = 1, .device = DeviceChoice::kCuda, .makes_nccl = false});
  mesh.kv_comm().set_deadline(100ms);
  HeldStream stream;
  expect_late([&] { mesh.wait(stream.view(), "test"); }, "test");
  stream.release();
  mesh.wait(stream.view(), "test");
}

TEST(MeshWait, EndsAtTheDeadlineForTheWholeDeviceToo) {
  check(cudaSetDevice(0));
  HeldStream stream;
  const DeviceWait wait{Rank{0}, 100ms, "wait until idle"};
  expect_late([&] { wait_until(whole_device_done(0), wait); }, "wait until idle");
  stream.release();
  wait_until(whole_device_done(0), wait);
}

constexpr CacheOptions kSmallCache{.layers = 1,
                                   .q_heads = 8,
                                   .kv_heads = 2,
                                   .k_dim = 64,
                                   .pages_per_rank = 1000,
                                   .dtype = Dtype::kBFloat16};

// On a device that is stuck the first plan only enqueues its work, though every array grows; the
// second one waits for the first to be taken.
TEST(MeshWait, EndsAtTheDeadlineInAPlanToo) {
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCuda});
  KvCache cache(mesh, kSmallCache);
  const SequenceId a = cache.create(), b = cache.create();
  StepPlan step = cache.plan({{a, 1}});
  mesh.kv_comm().set_deadline(100ms);
  HeldStream stream;
  const auto start = std::chrono::steady_clock::now();
  cache.replan(step, {{{b, 12'000, 1}}}, stream.view());
  EXPECT_LT(std::chrono::steady_clock::now() - start, 5s);
  expect_late([&] { cache.replan(step, {{{a, 1}}}, stream.view()); }, "plan");
  EXPECT_THROW(cache.replan(step, {{{a, 1}}}, stream.view()), Error) << "its group is broken";
}

// A batch of more queries needs larger partials and a larger combine.
TEST(MeshWait, LargerBatchDoesNotWaitForOtherStreams) {
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCuda});
  KvCache cache(mesh, kSmallCache);
  const SequenceId a = cache.create(), b = cache.create();
  StepPlan step = cache.plan({{a, 1}});
  mesh.kv_comm().set_deadline(1s);
  const HeldStream held;
  const Stream stream;
  cache.replan(step, {{{a, 1}, {b, 1}}}, {stream});
  mesh.wait({stream}, "test");
  EXPECT_EQ(step.query_tokens(), 2);
}

}  // namespace
}  // namespace kvmesh::test
