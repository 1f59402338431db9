// The contracts on a reproducible cache, for which CheckedCache expects one rank's bits, and the
// other guarantees of such a cache.
#include "tests/contracts/attention_contract.hpp"
#include "tests/contracts/on_each_placement.hpp"
#include "tests/contracts/sequences_contract.hpp"

namespace kvmesh::test {
namespace {

template <class Ranks>
struct ReproducibleOnCpu : OnCpu<Ranks> {
  static constexpr int kRandomMods = 10;
  static constexpr int kRandomCases = 8;
  static constexpr bool kReproducible = true;
  static CacheOptions small() {
    CacheOptions options = OnCpu<Ranks>::small();
    options.reproducible = true;
    return options;
  }
};

using ReproduciblePlaces =
    testing::Types<ReproducibleOnCpu<LoopbackRanks<1>>, ReproducibleOnCpu<LoopbackRanks<2>>,
                   ReproducibleOnCpu<LoopbackRanks<3>>, ReproducibleOnCpu<LoopbackRanks<4>>,
                   ReproducibleOnCpu<LoopbackRanks<8>>>;
INSTANTIATE_TEST_SUITE_P(Reproducible, AttentionContract, each_place(ReproduciblePlaces()),
                         param_name);
INSTANTIATE_TEST_SUITE_P(Reproducible, SequencesContract, each_place(ReproduciblePlaces()),
                         param_name);

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

// Returns every output of a prompt that is fed `chunk` tokens at a time.
std::vector<float> outputs_of(Mesh& mesh, const CacheOptions& options, std::int64_t chunk) {
  verify::Random random(21);
  std::vector<float> q = random.reals(kTokens * kQHeads * kDim, 3.0f);
  std::vector<float> k = random.reals(kTokens * kKvHeads * kDim, 3.0f);
  std::vector<float> v = random.reals(kTokens * kKvHeads * kDim);
  std::vector<float> o(q.size());
  KvCache cache(mesh, options);
  const SequenceId sequence = cache.create();
  for (std::int64_t begin = 0; begin < kTokens; begin += chunk) {
    const std::int64_t count = std::min(chunk, kTokens - begin);
    const auto rows = [&](std::vector<float>& all, int heads) {
      return tensor(all.data() + begin * heads * kDim, {count, heads, kDim});
    };
    cache.plan({{sequence, count}})
        .run(0, {rows(q, kQHeads), rows(k, kKvHeads), rows(v, kKvHeads)}, {.o = rows(o, kQHeads)});
  }
  return o;
}

TEST(ReproducibleCache, BitsDoNotDependOnHowAPromptIsFed) {
  std::vector<float> want;
  run_on_threads(
      1, [&](Mesh& mesh) { want = outputs_of(mesh, model(16, Placement::kBalanced), kTokens); });
  for (int ranks : {1, 3}) {
    run_on_threads(ranks,
                   [&](Mesh& mesh) {
                     for (Placement placement : {Placement::kBalanced, Placement::kStriped}) {
                       for (std::int64_t chunk : {1, 37, 150}) {
                         EXPECT_EQ(outputs_of(mesh, model(16, placement), chunk), want)
                             << ranks << chunk;
                       }
                     }
                     for (int page_size : {32, 48}) {
                       EXPECT_EQ(outputs_of(mesh, model(page_size, Placement::kStriped), 64), want)
                           << ranks << " ranks, pages of " << page_size;
                     }
                   },
                   {.threads = 1});
  }
}

TEST(ReproducibleCache, IsAsExactAsAnyCache) {
  double errors[2] = {};
  for (const bool reproducible : {false, true}) {
    Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
    CacheOptions options = small_cache(kSmallShape);
    options.page_size = 16;
    options.pages_per_rank = 400;
    options.reproducible = reproducible;
    CheckedCache cache(mesh, options, 5);
    prompt(cache, 4000, 40);
    EXPECT_TRUE(cache.findings().good());
    errors[reproducible] = cache.findings().max_error();
  }
  EXPECT_LE(errors[1], errors[0]);
}

TEST(ReproducibleCache, RejectsPartials) {
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  KvCache cache(mesh, model(16, Placement::kBalanced));
  StepPlan plan = cache.plan({{cache.create(), 1}});
  std::vector<float> numbers(kQHeads * kDim), lses(kQHeads);
  const TensorView rows = tensor(numbers.data(), {1, kQHeads, kDim});
  const Partial partial{rows, tensor(lses.data(), {1, kQHeads})};
  EXPECT_THROW(plan.attend_partial(0, rows, partial), Unsupported);
  EXPECT_THROW(plan.combine(partial, {.o = rows}), Unsupported);
}

}  // namespace
}  // namespace kvmesh::test
