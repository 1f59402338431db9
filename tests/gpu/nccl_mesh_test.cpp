// A cache over NCCL groups: an engine's own, and one with a peer that stays away.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/gpu/graph.hpp"
#include "tests/gpu/served_model.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

Mesh mesh_of_gpus() { return Mesh::from_launcher({.device = DeviceChoice::kCuda}); }

/// Whether each rank has a GPU of its own, and peers.
bool has_peers(Mesh& mesh) { return mesh.kv_parallel() > 1 && mesh.gpus() != nullptr; }

std::vector<std::byte> outputs_of(Mesh& mesh) {
  constexpr std::int64_t kTokens = 200;
  const DeviceMemory numbers = random_numbers(mesh);
  Inputs inputs(mesh, kTokens);
  inputs.change(numbers, 3);
  const Outputs outputs(mesh, kTokens);
  const Stream stream;
  Served served{KvCache(mesh, cache_options())};
  StepPlan step = served.cache.plan({{served.cache.create(), kTokens}});
  served.run(step, inputs, outputs, stream);
  mesh.wait({stream}, "test");
  return outputs.bits(kLayers - 1, kTokens);
}

TEST(NcclMesh, ServesACacheOverAnEnginesOwnCommunicator) {
  Mesh mesh = mesh_of_gpus();
  if (!has_peers(mesh)) GTEST_SKIP() << "wants a GPU a rank, and two of them";
  const std::vector<std::byte> expected = outputs_of(mesh);

  Mesh other = mesh_of_gpus();
  NcclUniqueId id = make_nccl_unique_id();
  broadcast(other.world(), Rank{0}, std::as_writable_bytes(std::span(id.bytes)));
  NcclGroup engines(id, other.kv_rank(), other.kv_parallel(), other.device().index);
  other.use_gpus(NcclGroup::borrow(engines.handle()));
  EXPECT_EQ(other.gpus()->handle(), engines.handle());
  EXPECT_EQ(outputs_of(other), expected);
  EXPECT_THROW(other.use_gpus(NcclGroup::borrow(engines.handle())), InvalidArgument) << "too late";
}

TEST(NcclMesh, RefusesTheGroupOfAnotherRank) {
  Mesh mesh = mesh_of_gpus();
  if (!has_peers(mesh)) GTEST_SKIP() << "wants a GPU a rank, and two of them";
  Mesh other = mesh_of_gpus();
  NcclGroup alone(make_nccl_unique_id(), Rank{0}, 1, other.device().index);
  EXPECT_THROW(other.use_gpus(std::move(alone)), InvalidArgument);
}

// Whoever goes on planning learns of it, though no wait of its own stands in the program.
TEST(NcclMesh, APeerThatStaysAwayEndsTheNextPlans) {
  Mesh mesh = mesh_of_gpus();
  if (!has_peers(mesh)) GTEST_SKIP() << "wants a GPU a rank, and two of them";
  constexpr std::int64_t kTokens = 4;
  Inputs inputs(mesh, kTokens);
  const Outputs outputs(mesh, kTokens);
  const Stream stream;
  {
    Served served{KvCache(mesh, cache_options())};
    for (int i = 0; i < kTokens; ++i) served.living.push_back(served.cache.create());
    StepPlan step = served.cache.plan({}, {.limits = StepLimits{.sequences = kTokens}});
    std::vector<BatchEntry> batch;
    for (SequenceId sequence : served.living) batch.push_back({sequence, 1});
    served.run(step, inputs, outputs, stream);
    mesh.wait({stream}, "test");
    // NCCL's own abort would wait for the end of a graph.
    const Graph graph(stream, [&] { served.run(step, inputs, outputs, stream); });
    if (mesh.rank() == Rank{0}) {
      mesh.kv().set_deadline(1s);
      graph.launch(stream);  // the others do not
      const auto start = std::chrono::steady_clock::now();
      served.cache.replan(step, batch, {stream});  // waits for nothing
      EXPECT_LT(std::chrono::steady_clock::now() - start, 500ms);
      try {
        served.cache.replan(step, batch, {stream});
        ADD_FAILURE() << "nobody noticed";
      } catch (const Timeout& timeout) {
        EXPECT_EQ(timeout.operation(), "plan");
        EXPECT_EQ(timeout.waiter(), Rank{0});
        EXPECT_EQ(std::ssize(timeout.late()), mesh.kv_parallel() - 1);
      }
      EXPECT_LT(std::chrono::steady_clock::now() - start, 6s);
    }
  }  // frees what the device was using, without end if NCCL's kernels were there still
  barrier(mesh.world());
}

}  // namespace
}  // namespace kvmesh::test
