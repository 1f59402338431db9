// The contracts on a reproducible cache of GPUs, for which CheckedCache expects the bits of one
// rank on the same GPU, and the other guarantees of such a cache.
#include <algorithm>
#include <cmath>

#include "tests/contracts/attention_contract.hpp"
#include "tests/contracts/on_each_placement.hpp"
#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {
namespace {

/// 16-bit pages, of which the chunks have 4, 16, 1 and 8 keys.
struct ExactSizes {
  static constexpr const char* kName = "Exact";
  static constexpr int kRandomCases = 4;
  static constexpr ContractShape kSmall{6, 2, 24, 16, 4, Dtype::kBFloat16};
  static std::vector<ContractShape> shapes() {
    return {{8, 1, 128, 128, 16, Dtype::kFloat16},
            {8, 2, 64, 128, 1, Dtype::kBFloat16},
            {4, 4, 256, 256, 8, Dtype::kBFloat16},
            {16, 1, 576, 512, 64, Dtype::kBFloat16, PageKind::kLatent},
            {14, 2, 40, 72, 24, Dtype::kFloat16}};
  }
};

template <class Ranks>
struct ReproducibleOnCuda : OnCuda<Ranks, ExactSizes> {
  static constexpr bool kReproducible = true;
  static CacheOptions small() {
    CacheOptions options = OnCuda<Ranks, ExactSizes>::small();
    options.reproducible = true;
    return options;
  }
  static std::vector<Dtype> stored() { return {Dtype::kFloat16, Dtype::kBFloat16}; }
};

using GpuPlaces = testing::Types<ReproducibleOnCuda<MpiRanks>>;
INSTANTIATE_TEST_SUITE_P(Reproducible, AttentionContract, each_place(GpuPlaces()), param_name);
INSTANTIATE_TEST_SUITE_P(Reproducible, SequencesContract, each_place(GpuPlaces()), param_name);

constexpr std::int64_t kTokens = 150;
constexpr int kQHeads = 4, kKvHeads = 2, kDim = 24;

CacheOptions model(int page_size, Placement placement) {
  return {.q_heads = kQHeads,
          .kv_heads = kKvHeads,
          .k_dim = kDim,
          .page_size = page_size,
          .pages_per_rank = 64,
          .dtype = Dtype::kFloat16,
          .placement = placement,
          .home_threshold_tokens = 32,
          .reproducible = true};
}

MeshOptions on_gpu() { return {.threads = 1, .device = DeviceChoice::kCuda}; }

verify::HostTensor random_rows(verify::Random& random, Dtype dtype, int heads, Device device) {
  verify::HostTensor rows(dtype, kTokens, heads, kDim, device);
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (int head = 0; head < heads; ++head) {
      for (int d = 0; d < kDim; ++d) rows.set(t, head, d, 3.0f * random.real());
    }
  }
  return rows;
}

TensorView some_rows(TensorView rows, std::int64_t begin, std::int64_t count) {
  rows.data = static_cast<std::byte*>(rows.data) +
              static_cast<std::size_t>(begin * rows.stride(0)) * size_bytes(rows.dtype);
  rows.shape[0] = count;
  return rows;
}

// Returns every output of a prompt that is fed `chunk` tokens at a time.
std::vector<float> outputs_of(Mesh& mesh, const CacheOptions& options, std::int64_t chunk) {
  verify::Random random(21);
  const Device device = mesh.device();
  verify::HostTensor q = random_rows(random, Dtype::kFloat32, kQHeads, device);
  verify::HostTensor k = random_rows(random, Dtype::kFloat16, kKvHeads, device);
  verify::HostTensor v = random_rows(random, Dtype::kFloat16, kKvHeads, device);
  verify::HostTensor o(Dtype::kFloat32, kTokens, kQHeads, kDim, device);
  verify::HostTensor lse(Dtype::kFloat32, kTokens, kQHeads, 1, device);
  const TensorView all[] = {q.on_device(), k.on_device(), v.on_device(), o.on_device(),
                            lse.matrix_on_device()};
  KvCache cache(mesh, options);
  const SequenceId sequence = cache.create();
  for (std::int64_t begin = 0; begin < kTokens; begin += chunk) {
    const std::int64_t count = std::min(chunk, kTokens - begin);
    const auto rows = [&](int i) { return some_rows(all[i], begin, count); };
    cache.plan({{sequence, count}}, {.mask = mods::causal()})
        .run(0, {rows(0), rows(1), rows(2)}, {.o = rows(3), .lse = rows(4)});
  }
  mesh.wait({}, "test");
  o.fetch();
  lse.fetch();
  std::vector<float> numbers;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    for (int head = 0; head < kQHeads; ++head) {
      numbers.push_back(lse.get(t, head, 0));
      for (int d = 0; d < kDim; ++d) numbers.push_back(o.get(t, head, d));
    }
  }
  return numbers;
}

TEST(ReproducibleOnGpus, BitsDoNotDependOnRanksNorOnHowAPromptIsFed) {
  Mesh mesh = Mesh::from_launcher(on_gpu());
  MeshOptions same_gpu = on_gpu();
  same_gpu.gpu = mesh.device().index;
  Mesh single(make_single_communicator(), same_gpu);
  const std::vector<float> want = outputs_of(single, model(16, Placement::kBalanced), kTokens);
  EXPECT_EQ(std::ranges::count_if(want, [](float x) { return std::isnan(x); }), 0);
  for (const Placement placement : {Placement::kBalanced, Placement::kStriped}) {
    for (const std::int64_t chunk : {1, 37, 150}) {
      EXPECT_EQ(outputs_of(mesh, model(16, placement), chunk), want) << name(placement) << chunk;
    }
  }
  for (const int page_size : {32, 48}) {
    EXPECT_EQ(outputs_of(mesh, model(page_size, Placement::kStriped), 64), want) << page_size;
  }
}

// Both kinds of caches round each weight to float16, once, so their largest errors are of one size;
// sums in float32 would add to it, exact ones do not.
TEST(ReproducibleOnGpus, AreAsExactAsOtherCaches) {
  double errors[2] = {};
  for (const bool reproducible : {false, true}) {
    Mesh mesh(make_single_communicator(), on_gpu());
    CacheOptions options = small_cache({8, 2, 64, 64, 16, Dtype::kFloat16});
    options.pages_per_rank = 400;
    options.reproducible = reproducible;
    CheckedCache cache(mesh, options, 5);
    prompt(cache, 4000, 40);
    EXPECT_TRUE(cache.findings().good());
    errors[reproducible] = cache.findings().max_error();
  }
  EXPECT_LE(errors[1], 1.25 * errors[0]);
}

TEST(ReproducibleOnGpus, RefusePagesWithoutTensorCores) {
  Mesh mesh = Mesh::from_launcher(on_gpu());
  CacheOptions options = model(16, Placement::kBalanced);
  options.dtype = Dtype::kFloat32;
  EXPECT_THROW(KvCache(mesh, options), Unsupported);
  options.dtype = Dtype::kFloat16;
  options.k_dim = 20;
  EXPECT_THROW(KvCache(mesh, options), Unsupported);
}

TEST(ReproducibleOnGpus, RefusePartials) {
  Mesh mesh(make_single_communicator(), on_gpu());
  KvCache cache(mesh, model(16, Placement::kBalanced));
  StepPlan plan = cache.plan({{cache.create(), 1}});
  verify::HostTensor o(Dtype::kFloat32, 1, kQHeads, kDim, mesh.device());
  verify::HostTensor lse(Dtype::kFloat32, 1, kQHeads, 1, mesh.device());
  const Partial partial{o.on_device(), lse.matrix_on_device()};
  EXPECT_THROW(plan.attend_partial(0, partial.o, partial), Unsupported);
  EXPECT_THROW(plan.combine(partial, {.o = partial.o}), Unsupported);
}

}  // namespace
}  // namespace kvmesh::test
