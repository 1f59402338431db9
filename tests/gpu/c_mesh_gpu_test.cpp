// The C interface on GPUs: a step on a stream, by meshes with each kind of NCCL group.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/device_memory.hpp"
#include "runtime/c/handles.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/support/c_options.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kTokens = 40, kHeads = 4, kKvHeads = 2, kDim = 64;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

#define EXPECT_OK(call) EXPECT_EQ(call, KVMESH_OK) << kvmesh_last_error()
#define ASSERT_OK(call) ASSERT_EQ(call, KVMESH_OK) << kvmesh_last_error()

struct DestroyMesh {
  void operator()(kvmesh_mesh_t* mesh) const { kvmesh_mesh_destroy(mesh); }
};
using CMesh = std::unique_ptr<kvmesh_mesh_t, DestroyMesh>;

CMesh mesh_of_gpus(bool makes_nccl) {
  auto options = sized<kvmesh_mesh_options_t>();
  options.device = KVMESH_DEVICE_CUDA;
  options.no_nccl = makes_nccl ? 0 : 1;
  kvmesh_mesh_t* mesh = nullptr;
  EXPECT_OK(kvmesh_mesh_from_launcher(&options, &mesh));
  return CMesh(mesh);
}

/// True if NCCL takes these ranks: each has a GPU of its own.
bool may_have_nccl() { return mesh_of_gpus(true)->mesh.device_group().nccl() != nullptr; }

/// Numbers on the GPU, and the C interface's view of them.
class Floats {
 public:
  Floats(const kvmesh_mesh_t& mesh, std::vector<float> numbers, std::vector<std::int64_t> shape)
      : numbers_(std::move(numbers)),
        shape_(std::move(shape)),
        memory_(mesh.mesh.device(), numbers_.size() * sizeof(float)) {
    copy_bytes(memory_.data(), numbers_.data(), numbers_.size() * sizeof(float));
    view_.data = memory_.data();
    view_.device_type = 2;
    view_.device_id = mesh.mesh.device().index;
    view_.ndim = static_cast<std::int32_t>(shape_.size());
    view_.type_code = 2;
    view_.type_bits = 32;
    view_.type_lanes = 1;
    view_.shape = shape_.data();
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;

  const kvmesh_tensor_t* view() const { return &view_; }
  /// REQUIRES: what writes them is done.
  const std::vector<float>& read() {
    copy_bytes(numbers_.data(), memory_.data(), numbers_.size() * sizeof(float));
    return numbers_;
  }

 private:
  std::vector<float> numbers_;
  std::vector<std::int64_t> shape_;
  DeviceMemory memory_;
  kvmesh_tensor_t view_{};
};

/// All keys are zero and token i holds the value i, so row i is the mean of 0 to i.
void run_step(kvmesh_mesh_t* mesh, std::int32_t way) {
  const auto numbers = [](std::int64_t count) { return static_cast<std::size_t>(count); };
  std::vector<float> values(numbers(kTokens * kKvHeads * kDim));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(static_cast<std::int64_t>(i) / (kKvHeads * kDim));
  }
  const Floats q(*mesh, std::vector<float>(numbers(kTokens * kHeads * kDim), 0.5f),
                 {kTokens, kHeads, kDim});
  const Floats k(*mesh, std::vector<float>(values.size(), 0.0f), {kTokens, kKvHeads, kDim});
  const Floats v(*mesh, values, {kTokens, kKvHeads, kDim});
  Floats o(*mesh, std::vector<float>(numbers(kTokens * kHeads * kDim), kNan),
           {kTokens, kHeads, kDim});
  Floats lse(*mesh, std::vector<float>(numbers(kTokens * kHeads), kNan), {kTokens, kHeads});

  auto options = sized<kvmesh_cache_options_t>();
  options.q_heads = kHeads;
  options.kv_heads = kKvHeads;
  options.k_dim = kDim;
  options.pages_per_rank = 8;
  options.dtype = KVMESH_DTYPE_FLOAT32;
  options.placement = KVMESH_PLACE_STRIPED;
  auto plan_options = sized<kvmesh_plan_options_t>();
  plan_options.way = way;
  kvmesh_batch_entry_t entry{0, kTokens, -1};
  kvmesh_cache_t* cache = nullptr;
  kvmesh_plan_t* plan = nullptr;
  ASSERT_OK(kvmesh_cache_create(mesh, &options, &cache));
  ASSERT_OK(kvmesh_sequence_create(cache, &entry.sequence));
  ASSERT_OK(kvmesh_plan_create(cache, &entry, 1, &plan_options, &plan));
  const Stream stream;
  EXPECT_OK(kvmesh_plan_run(plan, 0, q.view(), k.view(), v.view(), nullptr, o.view(), lse.view(),
                            static_cast<cudaStream_t>(stream)));
  EXPECT_OK(kvmesh_mesh_wait(mesh, static_cast<cudaStream_t>(stream), "the step"));
  const std::vector<float>&outs = o.read(), &lses = lse.read();
  for (std::int64_t row = 0; row < kTokens * kHeads; ++row) {
    const auto token = static_cast<float>(row / kHeads);
    ASSERT_NEAR(lses[numbers(row)], std::log(token + 1), 1e-4) << "row " << row;
    ASSERT_NEAR(outs[numbers(row * kDim)], token / 2, 1e-4) << "row " << row;
  }
  kvmesh_plan_destroy(plan);
  kvmesh_cache_destroy(cache);
}

/// Rank r has r + 1 keys of weight 1 in each row, with r as their value.
void run_combiner(kvmesh_mesh_t* mesh, std::int32_t scatter, std::int32_t strategy) {
  constexpr std::int64_t kRowTokens = 6, kRowDim = 8;
  const int rank = mesh->mesh.kv_rank().value, ranks = mesh->mesh.kv_parallel();
  double keys = 0, sum = 0;
  for (int each = 0; each < ranks; ++each) {
    keys += each + 1;
    sum += each * (each + 1);
  }
  const auto rows = static_cast<std::size_t>(kRowTokens * kHeads);
  const std::int64_t tokens =
      scatter == KVMESH_SCATTER_TOKENS ? share_of(kRowTokens, rank, ranks).size() : kRowTokens;
  const std::int64_t heads =
      scatter == KVMESH_SCATTER_HEADS ? share_of(kHeads, rank, ranks).size() : kHeads;
  const Floats part(*mesh, std::vector<float>(rows * kRowDim, static_cast<float>(rank)),
                    {kRowTokens, kHeads, kRowDim});
  const Floats part_lse(*mesh, std::vector<float>(rows, std::log(static_cast<float>(rank + 1))),
                        {kRowTokens, kHeads});
  const auto mine = static_cast<std::size_t>(tokens * heads);
  Floats o(*mesh, std::vector<float>(mine * kRowDim, kNan), {tokens, heads, kRowDim});
  Floats lse(*mesh, std::vector<float>(mine, kNan), {tokens, heads});

  auto options = sized<kvmesh_combine_options_t>();
  options.scatter = scatter;
  options.strategy = strategy;
  kvmesh_combiner_t* combiner = nullptr;
  ASSERT_OK(kvmesh_combiner_create(mesh, &combiner));
  const Stream stream;
  EXPECT_OK(kvmesh_combiner_run(combiner, part.view(), part_lse.view(), &options, o.view(),
                                lse.view(), static_cast<cudaStream_t>(stream)));
  EXPECT_OK(kvmesh_mesh_wait(mesh, static_cast<cudaStream_t>(stream), "the combine"));
  for (float each : o.read()) ASSERT_NEAR(each, sum / keys, 1e-4);
  for (float each : lse.read()) ASSERT_NEAR(each, std::log(keys), 1e-4);
  kvmesh_combiner_destroy(combiner);
}

/// A step whose rows NCCL moves, and the combine alone.
void use_group(kvmesh_mesh_t* mesh) {
  run_step(mesh, mesh->mesh.kv_parallel() > 1 ? KVMESH_WAY_NCCL : KVMESH_WAY_AUTO);
  for (std::int32_t scatter : {KVMESH_SCATTER_NONE, KVMESH_SCATTER_HEADS, KVMESH_SCATTER_TOKENS}) {
    for (std::int32_t strategy : {KVMESH_COMBINE_AUTO, KVMESH_COMBINE_REDUCE_SCATTER,
                                  KVMESH_COMBINE_ALL_TO_ALL, KVMESH_COMBINE_ALL_REDUCE}) {
      SCOPED_TRACE(testing::Message() << "scatter " << scatter << ", strategy " << strategy);
      run_combiner(mesh, scatter, strategy);
    }
  }
}

/// All ranks get what `make` writes on the first.
template <class Make>
void share(kvmesh_mesh_t* mesh, std::span<std::uint8_t> id, const Make& make) {
  if (mesh->mesh.rank() == Rank{0}) make();
  broadcast(mesh->mesh.world(), Rank{0}, std::as_writable_bytes(id));
}

TEST(CMeshOnGpus, RunsAStepOnAStream) {
  const CMesh mesh = mesh_of_gpus(true);
  auto info = sized<kvmesh_mesh_info_t>();
  ASSERT_OK(kvmesh_mesh_get_info(mesh.get(), &info));
  EXPECT_EQ(info.device_type, 2);
  EXPECT_EQ(info.device_id, mesh->mesh.device().index);
  run_step(mesh.get(), KVMESH_WAY_AUTO);
}

TEST(CMeshOnGpus, RefusesACombinerWithoutAGroup) {
  const CMesh mesh = mesh_of_gpus(false);
  kvmesh_combiner_t* combiner = nullptr;
  EXPECT_EQ(kvmesh_combiner_create(mesh.get(), &combiner), KVMESH_UNSUPPORTED);
}

TEST(CMeshOnGpus, MakesAGroupFromAnId) {
  if (!may_have_nccl()) GTEST_SKIP() << "wants NCCL and a GPU a rank";
  const CMesh mesh = mesh_of_gpus(false);
  std::array<std::uint8_t, 128> id{};
  share(mesh.get(), id, [&] { ASSERT_OK(kvmesh_nccl_make_id(id.data())); });
  ASSERT_OK(kvmesh_mesh_make_nccl(mesh.get(), id.data()));
  use_group(mesh.get());
}

TEST(CMeshOnGpus, UsesAnEnginesCommunicator) {
  if (!may_have_nccl()) GTEST_SKIP() << "wants NCCL and a GPU a rank";
  std::array<std::uint8_t, 128> bytes{};
  std::optional<NcclGroup> engines;  // ends after the mesh
  const CMesh mesh = mesh_of_gpus(false);
  share(mesh.get(), bytes, [&] { ASSERT_OK(kvmesh_nccl_make_id(bytes.data())); });
  NcclUniqueId id;
  std::copy(bytes.begin(), bytes.end(), id.bytes.begin());
  const Mesh& of = mesh->mesh;
  engines.emplace(id, of.kv_rank(), of.kv_parallel(), of.device().index);
  ASSERT_OK(kvmesh_mesh_use_nccl(mesh.get(), engines->handle()));
  EXPECT_EQ(mesh->mesh.device_group().nccl()->handle(), engines->handle());
  use_group(mesh.get());
  EXPECT_EQ(kvmesh_mesh_use_nccl(mesh.get(), engines->handle()), KVMESH_INVALID_ARGUMENT)
      << "too late";
}

}  // namespace
}  // namespace kvmesh::test
