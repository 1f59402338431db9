// Steps of a model that is served: batches as they come and go, and replays beside eager steps.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "tests/gpu/graph.hpp"
#include "tests/gpu/served_model.hpp"
#include "tests/support/steps.hpp"

namespace kvmesh::test {

inline constexpr std::int64_t kSequences = 12;  // of a captured step

/// Changes the set of sequences, in both caches alike.
class Arrivals {
 public:
  explicit Arrivals(std::uint64_t seed) : random_(seed) {}

  Random& random() { return random_; }

  /// Sometimes erases, truncates or forks a sequence. Returns true if a new one is to be made.
  bool next(Served& a, Served& b) {
    const std::int64_t count = std::ssize(a.living);
    if (count > 0 && random_.one_in(40)) {
      const auto gone = random_.integer(0, count - 1);
      for (Served* served : {&a, &b}) {
        served->cache.erase(served->living[static_cast<std::size_t>(gone)]);
        served->living.erase(served->living.begin() + gone);
      }
      return true;
    }
    if (count > 0 && random_.one_in(15)) {
      const auto s = static_cast<std::size_t>(random_.integer(0, count - 1));
      const std::int64_t length = a.cache.allocator().length(a.living[s]);
      const std::int64_t kept =
          random_.integer(std::max(length / 2, shortest(a, a.living[s])), length);
      for (Served* served : {&a, &b}) served->cache.truncate(served->living[s], kept);
    }
    if (count > 0 && count < kSequences && random_.one_in(30)) {
      const auto s = static_cast<std::size_t>(random_.integer(0, count - 1));
      for (Served* served : {&a, &b}) {
        served->living.push_back(served->cache.fork(served->living[s]));
      }
    }
    return a.living.empty() || (std::ssize(a.living) < kSequences && random_.one_in(10));
  }

  std::vector<BatchEntry> batch(const Served& served, std::uint64_t left_out) const {
    std::vector<BatchEntry> batch;
    for (std::size_t s = 0; s < served.living.size(); ++s) {
      if ((left_out >> s & 1) == 0)
        batch.push_back({.sequence = served.living[s], .append_tokens = 1});
    }
    return batch;
  }

 private:
  /// The least number of tokens that a truncation may leave: the next query sees no page that a
  /// window has given up.
  static std::int64_t shortest(const Served& served, SequenceId sequence) {
    std::int64_t tokens = 0;
    for (int group = 0; group < served.cache.groups(); ++group) {
      const std::int64_t released = served.cache.allocator(group).released_pages(sequence);
      if (released == 0) continue;
      const CacheOptions options = served.cache.group_options(group);
      tokens = std::max(tokens, released * options.page_size + options.window - 1);
    }
    return tokens;
  }

  Random random_;
};

/// How the steps differ from plain ones.
struct StepsWith {
  bool gathers = false;  ///< in the replays each rank knows the queries of its heads' share alone
  std::vector<LayerKind> kinds{};
  bool sinks = false;
};

/// Pages that the windows of all groups have given up, over all sequences.
inline std::int64_t released_pages(const Served& served) {
  std::int64_t pages = 0;
  for (int group = 0; group < served.cache.groups(); ++group) {
    for (const SequenceId sequence : served.living) {
      pages += served.cache.allocator(group).released_pages(sequence);
    }
  }
  return pages;
}

/// Compares `steps` replays with the same steps, planned and run one by one on `eager_mesh`.
/// Groups with windows give up pages between replays.
inline void expect_replays_like_eager_steps(Mesh& mesh, Mesh& eager_mesh,
                                            const CacheOptions& options, int steps,
                                            const StepsWith& with = {}) {
  const std::uint64_t seed = seed_or(5);
  SCOPED_TRACE(fmt::format("KVMESH_SEED={}", seed));
  Arrivals arrivals(seed);
  const DeviceMemory numbers = random_numbers(mesh);
  const Stream stream;
  Served graph_side{KvCache(mesh, options)}, eager_side{KvCache(eager_mesh, options)};
  if (with.sinks) {  // a pair of the numbers is a float32 of about the size of its second
    graph_side.sinks = {numbers.data(), Dtype::kFloat32, {kLayers, kQHeads}, mesh.device()};
    eager_side.sinks = graph_side.sinks;
  }

  Inputs inputs(mesh, kSequences);
  const Outputs replayed(mesh, kSequences), eager(mesh, kSequences);
  const std::int64_t prompt_room = 300;
  Inputs prompt(mesh, prompt_room);
  const Outputs prompt_out(mesh, prompt_room);
  StepPlan step = graph_side.cache.plan(
      {}, {.kinds = with.kinds, .limits = StepLimits{.sequences = kSequences, .query_tokens = 1}});
  const Inputs gathered(mesh, kSequences);
  const IndexRange heads = share_of(kQHeads, mesh.kv_rank().value, mesh.kv_parallel());
  const auto run = [&] {
    if (!with.gathers) return graph_side.run(step, inputs, replayed, stream);
    graph_side.gather_and_run(step, heads, inputs, gathered, replayed, stream);
  };
  run();  // nothing yet: NCCL connects
  const std::uint64_t generation = step.generation();
  const Graph graph(stream, run);

  std::int64_t compared = 0, given_up = 0;
  for (int turn = 0; turn < steps; ++turn) {
    if (arrivals.next(graph_side, eager_side)) {
      const std::int64_t tokens = arrivals.random().integer(1, prompt_room);
      prompt.change(numbers, arrivals.random().integer(0, 1000));
      for (Served* served : {&graph_side, &eager_side}) {
        served->living.push_back(served->cache.create());
        StepPlan prefill = served->cache.plan({{served->living.back(), tokens}});
        served->run(prefill, prompt, prompt_out, stream);
      }
    }
    const auto left_out = static_cast<std::uint64_t>(
        arrivals.random().one_in(4) ? arrivals.random().integer(0, 1 << kSequences) : 0);
    inputs.change(numbers, arrivals.random().integer(0, 1000));

    given_up -= released_pages(graph_side);
    graph_side.cache.replan(step, arrivals.batch(graph_side, left_out), {stream});
    given_up += released_pages(graph_side);
    ASSERT_EQ(step.generation(), generation);
    graph.launch(stream);

    StepPlan plan =
        eager_side.cache.plan(arrivals.batch(eager_side, left_out), {.kinds = with.kinds});
    eager_side.run(plan, inputs, eager, stream);
    stream.wait();
    for (int layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(replayed.bits(layer, plan.query_tokens()), eager.bits(layer, plan.query_tokens()))
          << "step " << turn << " layer " << layer;
    }
    compared += plan.query_tokens();
  }
  EXPECT_GT(compared, steps / 2) << "too few sequences";
  const bool has_windows =
      std::ranges::any_of(options.groups, [](const LayerGroup& it) { return it.window > 0; });
  EXPECT_EQ(given_up > 0, has_windows);
}

/// A batch of sequences of these lengths, some with several queries. Up to 64 tokens are on one
/// rank.
inline std::vector<BatchEntry> batch_of(Served& served, std::initializer_list<std::int64_t> lengths,
                                        const Inputs& prompt, const Outputs& out,
                                        const Stream& stream) {
  std::vector<BatchEntry> batch;
  for (const std::int64_t tokens : lengths) {
    const SequenceId sequence = served.cache.create();
    StepPlan prefill = served.cache.plan({{sequence, tokens}});
    served.run(prefill, prompt, out, stream);
    batch.push_back({sequence, batch.size() % 3 == 2 ? 5 : 1});
  }
  return batch;
}

}  // namespace kvmesh::test
