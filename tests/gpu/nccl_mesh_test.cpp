// A cache over NCCL groups: an engine's own, and one with a missing peer.
#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <optional>
#include <string>
#include <thread>

#include "comm/combine/choice/table_text.hpp"
#include "comm/combine/peer/peer_window.hpp"
#include "core/hash.hpp"
#include "tests/gpu/graph.hpp"
#include "tests/gpu/served_model.hpp"
#include "tests/support/environment.hpp"
#include "tests/support/temporary_directory.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

Mesh mesh_of_gpus(bool makes_nccl = true) {
  return Mesh::from_launcher(
      {.device = DeviceChoice::kCuda, .makes_nccl = makes_nccl, .peer_window_bytes = 0});
}

/// True if each rank has a GPU of its own, and peers.
bool has_peers(Mesh& mesh) {
  return mesh.kv_parallel() > 1 && mesh.device_group().nccl() != nullptr;
}

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

  Mesh other = mesh_of_gpus(false);
  EXPECT_EQ(other.device_group().nccl(), nullptr);
  NcclUniqueId id = make_nccl_unique_id();
  broadcast(other.world(), Rank{0}, std::as_writable_bytes(std::span(id.bytes)));
  NcclGroup engines(id, other.kv_rank(), other.kv_parallel(), other.device().index);
  other.device_group().use_nccl(NcclGroup::borrow(engines.handle()));
  EXPECT_EQ(other.device_group().nccl()->handle(), engines.handle());
  EXPECT_EQ(outputs_of(other), expected);
  EXPECT_THROW(other.device_group().use_nccl(NcclGroup::borrow(engines.handle())), InvalidArgument)
      << "too late";
}

TEST(NcclMesh, RejectsTheGroupOfAnotherRank) {
  Mesh mesh = mesh_of_gpus();
  if (!has_peers(mesh)) GTEST_SKIP() << "wants a GPU a rank, and two of them";
  Mesh other = mesh_of_gpus(false);
  NcclGroup alone(make_nccl_unique_id(), Rank{0}, 1, other.device().index);
  EXPECT_THROW(other.device_group().use_nccl(std::move(alone)), InvalidArgument);
}

struct Timed {
  double seconds = 0;
  std::string table;  // empty: none
  std::int64_t home_threshold = 0;
};

/// The tokens that kMeasuredHomeThreshold gives, for 64/8 heads of 128 elements.
std::int64_t measured_threshold(Mesh& mesh) {
  const KvCache cache(mesh, {.layers = 1,
                             .q_heads = 64,
                             .kv_heads = 8,
                             .k_dim = 128,
                             .pages_per_rank = 1,
                             .dtype = Dtype::kBFloat16,
                             .home_threshold_tokens = kMeasuredHomeThreshold});
  return cache.options().home_threshold_tokens;
}

/// A mesh with windows where the GPUs are linked, and how long it took to make its table.
Timed prepared_ways(const char* use) {
  const Variable off("KVMESH_COMBINE_TABLE", "off");
  Mesh mesh = Mesh::from_launcher({.device = DeviceChoice::kCuda});
  DeviceGroup& group = mesh.device_group();
  EXPECT_EQ(group.way_table(), nullptr);
  const Variable given("KVMESH_COMBINE_TABLE", use);
  const auto start = std::chrono::steady_clock::now();
  group.prepare_ways();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const bool has_nccl = group.nccl() != nullptr;
  const bool has_peers = group.peer_window() != nullptr && !group.peer_window()->shares_gpus();
  const bool has_choice = has_nccl && (has_peers || mesh.kv_parallel() > 2);
  EXPECT_EQ(group.way_table() != nullptr, has_choice);
  if (!has_choice) return {seconds.count(), "", 0};
  EXPECT_GT(group.way_table()->read_gbs, 100) << "a GPU's memory";
  const std::string text = to_text("", *group.way_table());
  for (const std::uint64_t hash : all_gather_value(mesh.world(), Hash().add_all(text).value())) {
    EXPECT_EQ(hash, Hash().add_all(text).value()) << "a rank has another table";
  }
  return {seconds.count(), text, measured_threshold(mesh)};
}

TEST(NcclMesh, MeasuresItsWaysOnce) {
  const TemporaryDirectory folder;  // of each rank
  const Variable cache("KVMESH_CACHE_DIR", folder.path().c_str());
  const Variable no_way("KVMESH_COMBINE_WAY", nullptr);
  const Timed measured = prepared_ways("auto");
  if (measured.table.empty()) GTEST_SKIP() << "the ranks have one way";
  const Timed read = prepared_ways("auto");
  EXPECT_EQ(read.table, measured.table);
  EXPECT_EQ(read.home_threshold, measured.home_threshold);
  EXPECT_NE(measured.home_threshold, CacheOptions{}.home_threshold_tokens) << "not computed";
  const Timed anew = prepared_ways("new");
  EXPECT_NE(anew.table, measured.table);
  std::cout << "measured in " << measured.seconds << " s, again in " << anew.seconds
            << " s, read in " << read.seconds << " s\n"
            << "home thresholds: " << measured.home_threshold << " tokens, measured again "
            << anew.home_threshold << '\n'
            << measured.table;
  EXPECT_LT(read.seconds, measured.seconds);
}

// A rank that goes on planning gets the error, though its program has no wait.
TEST(NcclMesh, MissingPeerEndsTheNextPlans) {
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
    mesh.kv_comm().set_deadline(1s);  // also for the others' end: they wait for rank 0
    if (mesh.rank() == Rank{0}) {
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

using Clock = std::chrono::steady_clock;

/// One rank has all pages: it sends to the others and waits for none of them.
TEST(NcclMesh, DestructorWaitsUntilPeersHaveReceived) {
  constexpr std::int64_t kTokens = 16;
  const auto comm = make_mpi_communicator();
  std::optional<Mesh> mesh(mesh_of_gpus());
  if (!has_peers(*mesh)) GTEST_SKIP() << "wants a GPU a rank, and two of them";
  const DeviceMemory numbers = random_numbers(*mesh);
  Inputs inputs(*mesh, kTokens);
  inputs.change(numbers, 3);
  const Outputs expected(*mesh, kTokens), outputs(*mesh, kTokens);
  const Stream stream;
  Clock::time_point start;
  bool has_pages = false;
  {
    Served served{KvCache(*mesh, cache_options())};
    const SequenceId sequence = served.cache.create();
    StepPlan step = served.cache.plan({{sequence, kTokens}});
    has_pages = served.cache.allocator().pages(sequence).front().rank() == mesh->page_rank();
    served.run(step, inputs, expected, stream);
    mesh->wait({stream}, "test");
    barrier(*comm);
    start = Clock::now();
    if (!has_pages) std::this_thread::sleep_for(500ms);
    // One layer: its messages have room on their way, so the sender's stream is done at once.
    step.run(0, inputs.layer(0, kTokens), outputs.layer(0, kTokens), {stream});
    mesh->wait({stream}, "test");
  }
  mesh.reset();
  const Clock::duration waited = Clock::now() - start;
  EXPECT_LT(waited, 10s);
  EXPECT_GT(waited, has_pages ? 400ms : 0ms) << "it left before the others had come";
  EXPECT_EQ(outputs.bits(0, kTokens), expected.bits(0, kTokens));
}

TEST(NcclMesh, DestructorWaitIsBounded) {
  const auto comm = make_mpi_communicator();
  std::optional<Mesh> mesh(mesh_of_gpus());
  if (!has_peers(*mesh)) GTEST_SKIP() << "wants a GPU a rank, and two of them";
  if (mesh->rank() == Rank{0}) {  // waits for the others, in vain
    mesh->kv_comm().set_deadline(1s);
    const Clock::time_point start = Clock::now();
    mesh.reset();
    EXPECT_GT(Clock::now() - start, 900ms);
    EXPECT_LT(Clock::now() - start, 6s);
  }
  barrier(*comm);
  if (!mesh) return;
  const Clock::time_point start = Clock::now();
  try {  // an exception passes: waits for nobody
    const Mesh passed_by = std::move(*mesh);
    throw Error("test");
  } catch (const Error&) {
    EXPECT_LT(Clock::now() - start, 6s);
  }
}

}  // namespace
}  // namespace kvmesh::test
