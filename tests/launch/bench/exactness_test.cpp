// The timed output is compared with float64, and a wrong number is found.
#include "launch/bench/exactness.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "launch/bench/manners.hpp"

namespace kvmesh::bench {
namespace {

/// The error of kvmesh's own output, after `spoil` has changed it. The rows are those of `manner`,
/// or are compared as if they were.
template <class Spoil>
double error_of(const WorkloadShape& shape, std::int64_t queries, const Spoil& spoil,
                Manner manner = Manner::kPlain, std::optional<Manner> compared = {}) {
  double error = -1;
  run_on_threads(
      1,
      [&](Mesh& mesh) {
        const auto machine = make_cpu_machine(mesh, 1 << 20);
        Workload workload(mesh, *machine, shape);
        Options options{
            .shape = shape.model, .manner = manner, .token_list = 6, .tree = 2, .fixed_split = 128};
        StepPlan plan = workload.plan(0, queries, plan_options(workload, options, queries));
        LayerInput input = workload.input(plan);
        if (manner == Manner::kSinks) input.sinks = workload.sinks();
        const CombineOutput output = workload.output(plan);
        if (is_by_tables(manner)) {
          Tables(workload, options, queries).run(0, input.q, output, {});
        } else {
          plan.run(0, input, output);
        }
        spoil(output.o);
        options.manner = compared.value_or(manner);
        Seen seen{seen_by(workload, options, queries),
                  {},
                  score_of(options),
                  pool_of(workload.cache(), 0, options.manner)};
        if (options.manner == Manner::kSinks) seen.sinks = workload.sinks();
        error = output_error(workload, input.q, output.o, queries, seen);
      },
      {.threads = 1});
  return error;
}

WorkloadShape shape_of(Dtype dtype) {
  return {
      .model =
          {.q_heads = 6, .kv_heads = 2, .k_dim = 16, .v_dim = 8, .page_size = 4, .dtype = dtype},
      .batch = 4,
      .context = 50,
      .lengths = Lengths::kRagged};
}

TEST(Exactness, ErrorOfACorrectOutputIsItsRounding) {
  const auto nothing = [](const TensorView&) {};
  for (const std::int64_t queries : {1, 5, 50}) {
    EXPECT_LT(error_of(shape_of(Dtype::kFloat32), queries, nothing), 1e-5) << queries;
    EXPECT_LT(error_of(shape_of(Dtype::kFloat16), queries, nothing), 2e-3) << queries;
    EXPECT_LT(error_of(shape_of(Dtype::kBFloat16), queries, nothing), 1e-2) << queries;
  }
}

TEST(Exactness, ReadsFloat8PagesWithTheirScales) {
  WorkloadShape shape = shape_of(Dtype::kFloat32);
  shape.model.kv_dtype = Dtype::kFloat8E4M3;
  for (const ScaleKind kind :
       {ScaleKind::kPerTokenAndHead, ScaleKind::kPerHead, ScaleKind::kPerTensor}) {
    shape.model.kv_scales = kind;
    for (const Manner manner : {Manner::kPlain, Manner::kNhd}) {
      EXPECT_LT(error_of(
                    shape, 5, [](const TensorView&) {}, manner),
                1e-5)
          << name(kind);
    }
  }
}

TEST(Exactness, ReadsValuesInsideLatentKeys) {
  WorkloadShape shape = shape_of(Dtype::kFloat32);
  shape.model.page_kind = PageKind::kLatent;
  EXPECT_LT(error_of(shape, 5, [](const TensorView&) {}), 1e-5);
}

TEST(Exactness, KnowsWhatEachMannerSees) {
  const auto nothing = [](const TensorView&) {};
  const WorkloadShape shape = shape_of(Dtype::kFloat32);
  constexpr std::int64_t kQueries = 7;  // of a tree: token 6's ancestors are 2 and 0
  for (const Manner manner : {Manner::kTables, Manner::kFixed, Manner::kNhd, Manner::kSinks,
                              Manner::kList, Manner::kTree, Manner::kMod}) {
    SCOPED_TRACE(name(manner));
    EXPECT_LT(error_of(shape, kQueries, nothing, manner), 1e-5);
    if (manner == Manner::kTables || manner == Manner::kFixed)
      continue;  // whose queries see the same keys
    EXPECT_GT(error_of(shape, kQueries, nothing, manner, Manner::kPlain), 1e-3);
    EXPECT_GT(error_of(shape, kQueries, nothing, Manner::kPlain, manner), 1e-3);
  }
}

TEST(Exactness, DetectsWrongNumbers) {
  const WorkloadShape shape = shape_of(Dtype::kFloat32);
  const std::vector<std::int64_t> lengths = lengths_of(shape);
  const std::int64_t longest = std::ranges::max_element(lengths) - lengths.begin();
  // The last head of the longest sequence's first and last of three queries.
  for (const std::int64_t query : {0, 2}) {
    for (const float wrong : {0.5f, std::nanf("")}) {
      const double error = error_of(shape, 3, [&](const TensorView& out) {
        static_cast<float*>(out.data)[((longest * 3 + query) * 6 + 5) * 8 + 3] += wrong;
      });
      EXPECT_FALSE(error < 0.1) << query << ", " << wrong;
    }
  }
}

}  // namespace
}  // namespace kvmesh::bench
