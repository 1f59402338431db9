#include "tests/contracts/fixed_split_contract.hpp"

#include <fmt/format.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "launch/verify/host_tensor.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::test {
namespace {

using verify::HostTensor;

using Bits = std::vector<std::uint32_t>;

/// The sequence that is looked at: several pieces, and a part of one.
constexpr std::int64_t kLength = 3000;
/// One of the others, of which some batches have a long chunk.
constexpr std::int64_t kPrompt = 900;
constexpr std::int64_t kChunk = 640;
constexpr std::size_t kOthers = 300;

/// Draws kDrawn tokens, and repeats them.
void fill(HostTensor& tensor, std::int64_t begin, std::int64_t count, verify::Random random) {
  constexpr std::int64_t kDrawn = 64;
  for (std::int64_t t = 0; t < count; ++t) {
    if (t >= kDrawn) {
      tensor.copy_row(begin + t % kDrawn, begin + t);
      continue;
    }
    for (std::int64_t head = 0; head < tensor.heads(); ++head) {
      for (std::int64_t d = 0; d < tensor.dim(); ++d)
        tensor.set(begin + t, head, d, 3.0f * random.real());
    }
  }
}

/// The tensors of a step of up to `tokens` tokens.
struct Tensors {
  Tensors(const CacheOptions& of, std::int64_t tokens, Device device)
      : q(Dtype::kBFloat16, tokens, of.q_heads, of.k_dim, device),
        k(Dtype::kBFloat16, tokens, of.kv_heads, of.k_dim, device),
        v(Dtype::kBFloat16, tokens, of.kv_heads, of.v_dim, device),
        o(Dtype::kFloat32, tokens, of.q_heads, of.v_dim, device),
        lse(Dtype::kFloat32, tokens, of.q_heads, 1, device),
        sinks(Dtype::kFloat32, of.q_heads, 1, 1, device) {}
  HostTensor q, k, v, o, lse, sinks;
};

/// The other sequences of a batch, and the sequence's place among them.
struct Beside {
  std::string name;
  std::size_t others = 0;
  std::int64_t queries = 1;  ///< of each
  bool has_chunk = false;    ///< the first of them is kPrompt long, with kChunk queries
  std::size_t place = 0;
};

std::vector<Beside> batches() {
  return {{.name = "one", .others = 1, .place = 1},
          {.name = "seven", .others = 7, .place = 3},
          {.name = "seven with more rows", .others = 7, .queries = 9},
          {.name = "a long chunk", .others = 1, .has_chunk = true, .place = 1},
          {.name = "many", .others = kOthers, .place = 100},
          {.name = "many and a long chunk", .others = kOthers, .has_chunk = true}};
}

/// A cache whose sequences no step changes.
class Served {
 public:
  Served(Mesh& mesh, const ContractShape& shape)
      : mesh_(mesh), options_(with_shape(model(shape), shape)), cache_(mesh, options_) {
    std::vector<std::int64_t> lengths{kLength, kPrompt};
    verify::Random random(5);
    while (lengths.size() <= kOthers) lengths.push_back(random.integer(10, 180));
    std::vector<BatchEntry> batch;
    for (const std::int64_t length : lengths) {
      sequences_.push_back(cache_.create());
      batch.push_back({sequences_.back(), length, 0});
    }
    StepPlan plan = cache_.plan(batch);
    Tensors prompt(options_, plan.append_tokens(), mesh.device());
    fill(prompt.k, 0, plan.append_tokens(), verify::Random(6));
    fill(prompt.v, 0, plan.append_tokens(), verify::Random(7));
    plan.append(0, prompt.k.on_device(), values(prompt));
    mesh.wait({}, "test");
  }

  KvCache& cache() { return cache_; }
  SequenceId sequence() const { return sequences_[0]; }
  /// Pieces of about 512 tokens.
  std::int64_t piece() const {
    const std::int64_t unit = std::lcm(std::int64_t{128}, std::int64_t{options_.page_size});
    return (512 + unit - 1) / unit * unit;
  }

  std::vector<BatchEntry> batch(std::int64_t queries, const Beside& beside) const {
    std::vector<BatchEntry> batch;
    for (std::size_t i = 0; i < beside.others; ++i) {
      const bool is_chunk = i == 0 && beside.has_chunk;
      batch.push_back({sequences_[i + 1], 0, is_chunk ? kChunk : beside.queries});
    }
    const BatchEntry own{sequence(), 0, queries};
    batch.insert(batch.begin() + static_cast<std::ptrdiff_t>(beside.place), own);
    return batch;
  }

  /// Returns the bits of O and the LSEs of the sequence, whose queries are the same each time.
  Bits rows(StepPlan& plan, const std::vector<BatchEntry>& batch) {
    cache_.replan(plan, batch);
    Tensors step(options_, plan.query_tokens(), mesh_.device());
    std::int64_t first = 0, queries = 0, tokens = 0;
    for (const BatchEntry& entry : batch) {
      if (entry.sequence == sequence()) {
        first = tokens;
        queries = entry.query_tokens;
      }
      tokens += entry.query_tokens;
    }
    fill(step.q, 0, tokens, verify::Random(8));
    fill(step.q, first, queries, verify::Random(9));
    fill(step.sinks, 0, options_.q_heads, verify::Random(10));
    const bool has_room = plan.append_tokens() > 0;  // the limits'
    TensorView sinks = step.sinks.on_device();
    sinks = {sinks.data, sinks.dtype, {options_.q_heads}, sinks.device};
    plan.run(0,
             {.q = step.q.on_device(),
              .k = has_room ? step.k.on_device() : TensorView{},
              .v = has_room ? values(step) : TensorView{},
              .sinks = sinks},
             {.o = step.o.on_device(), .lse = step.lse.matrix_on_device()});
    mesh_.wait({}, "test");
    step.o.fetch();
    step.lse.fetch();
    return bits_of(step, first, queries);
  }
  Bits rows(const PlanOptions& options, const std::vector<BatchEntry>& batch) {
    StepPlan plan = cache_.plan(batch, options);
    return rows(plan, batch);
  }

 private:
  /// Pages for all sequences on one rank, and for forks.
  static CacheOptions model(const ContractShape& shape) {
    return {.layers = 1,
            .pages_per_rank = 45'000 / shape.page_size + 2 * std::int64_t{kOthers},
            .home_threshold_tokens = 64};
  }
  TensorView values(Tensors& of) const {
    return options_.page_kind == PageKind::kLatent ? TensorView{} : of.v.on_device();
  }
  Bits bits_of(const Tensors& step, std::int64_t first, std::int64_t queries) const {
    Bits bits;
    for (std::int64_t t = first; t < first + queries; ++t) {
      for (std::int64_t head = 0; head < options_.q_heads; ++head) {
        bits.push_back(std::bit_cast<std::uint32_t>(step.lse.get(t, head, 0)));
        for (std::int64_t d = 0; d < options_.v_dim; ++d) {
          bits.push_back(std::bit_cast<std::uint32_t>(step.o.get(t, head, d)));
        }
      }
    }
    return bits;
  }

  Mesh& mesh_;
  CacheOptions options_;
  KvCache cache_;
  std::vector<SequenceId> sequences_;
};

void on_each_shape(const Place& place, const std::function<void(Served&)>& body) {
  for (const ContractShape& shape : place.shapes()) {
    SCOPED_TRACE(fmt::format("{}/{} heads, dims {} and {}, pages of {} {}", shape.q_heads,
                             shape.kv_heads, shape.k_dim, shape.v_dim, shape.page_size,
                             name(shape.dtype)));
    place.run([&](Communicator& comm) {
      const auto mesh = place.mesh(comm, {.threads = 2, .device = place.device});
      Served served(*mesh, shape);
      body(served);
    });
  }
}

TEST_P(FixedSplitContract, RowsHaveTheSameBitsInEveryBatch) {
  on_each_shape(GetParam(), [](Served& served) {
    const PlanOptions options{.fixed_split_tokens = served.piece()};
    for (const std::int64_t queries : {1, 3, 40}) {
      const Bits want = served.rows(options, served.batch(queries, {}));
      for (const Beside& beside : batches()) {
        EXPECT_TRUE(served.rows(options, served.batch(queries, beside)) == want)
            << queries << " queries beside " << beside.name;
      }
    }
  });
}

// Chunks past which blocks stay whole, and chunks that are split.
TEST_P(FixedSplitContract, RowsOfLongChunksHaveTheSameBitsInEveryBatch) {
  on_each_shape(GetParam(), [](Served& served) {
    const PlanOptions options{.fixed_split_tokens = served.piece()};
    for (const std::int64_t queries : {200, 1200}) {
      const Bits want = served.rows(options, served.batch(queries, {}));
      for (const std::size_t b : {1, 3, 5}) {
        const Beside beside = batches()[b];
        EXPECT_TRUE(served.rows(options, served.batch(queries, beside)) == want)
            << queries << " queries beside " << beside.name;
      }
    }
  });
}

// The kernels of a plan are made for its first batch.
TEST_P(FixedSplitContract, RowsHaveTheSameBitsInReplannedBatches) {
  on_each_shape(GetParam(), [](Served& served) {
    const PlanOptions options{.fixed_split_tokens = served.piece()};
    const Bits want = served.rows(options, served.batch(1, {}));
    for (const Beside& first : batches()) {
      StepPlan plan = served.cache().plan(served.batch(3, first), options);
      EXPECT_TRUE(served.rows(plan, served.batch(1, {})) == want) << "after " << first.name;
      EXPECT_TRUE(served.rows(plan, served.batch(1, batches()[4])) == want)
          << "beside many, after " << first.name;
    }
  });
}

// One plan for all batches, as captured graphs have.
TEST_P(FixedSplitContract, RowsHaveTheSameBitsWithinLimits) {
  on_each_shape(GetParam(), [](Served& served) {
    const int group = served.cache().options().q_heads / served.cache().options().kv_heads;
    for (const std::int64_t queries : {1, 3}) {
      if (queries > 1 && queries * group > 64) continue;
      PlanOptions options{.fixed_split_tokens = served.piece()};
      options.limits = {.sequences = kOthers + 1, .query_tokens = queries, .shares_prefixes = true};
      StepPlan plan = served.cache().plan({}, options);
      const Bits want = served.rows(plan, served.batch(queries, {}));
      for (const Beside& beside : batches()) {
        if (beside.queries > queries || beside.has_chunk) continue;
        EXPECT_TRUE(served.rows(plan, served.batch(queries, beside)) == want)
            << queries << " queries beside " << beside.name;
      }
      EXPECT_TRUE(served.rows(plan, served.batch(queries, {})) == want) << "alone again";
    }
  });
}

TEST_P(FixedSplitContract, PrefixesAreReadAlone) {
  on_each_shape(GetParam(), [](Served& served) {
    std::vector<BatchEntry> forks = served.batch(1, {});
    for (int i = 0; i < 7; ++i) forks.push_back({served.cache().fork(served.sequence()), 0, 1});
    const auto visited = [&](const PlanOptions& options) {
      return served.cache().plan(forks, options).tiles().visited;
    };
    PlanOptions options{.least_saved_tokens = 1};
    const std::int64_t shared = visited(options);
    options.fixed_split_tokens = served.piece();
    const Bits want = served.rows(options, served.batch(1, {}));
    EXPECT_TRUE(served.rows(options, forks) == want);
    options.shares_prefixes = false;
    const std::int64_t alone = visited(options);
    options.shares_prefixes = true;
    EXPECT_EQ(visited(options), alone);
    // A thread block of a GPU has no room for the rows of two sequences of more heads.
    const CacheOptions& of = served.cache().options();
    if (of.q_heads / of.kv_heads <= 32) {
      EXPECT_LT(shared, alone) << "there is something to share";
    }
  });
}

// Otherwise these tests would pass without the option. Bits may be equal by chance, so not each
// shape must differ: a row of 12 elements of a few pieces has few roundings.
TEST_P(FixedSplitContract, WithoutItBitsFollowTheBatch) {
  std::atomic<int> shapes_that_differ{0};
  on_each_shape(GetParam(), [&](Served& served) {
    std::vector<BatchEntry> beside = served.batch(1, batches()[4]);
    for (int i = 0; i < 7; ++i) beside.push_back({served.cache().fork(served.sequence()), 0, 1});
    const PlanOptions options{.least_saved_tokens = 1};
    const Bits with_others = served.rows(options, beside);
    shapes_that_differ += with_others != served.rows(options, served.batch(1, {}));
  });
  EXPECT_GT(shapes_that_differ, 0);
}

TEST_P(FixedSplitContract, RejectsPiecesOfPartsOfPagesAndTiles) {
  on_each_shape(GetParam(), [](Served& served) {
    const std::vector<BatchEntry> batch = served.batch(1, {});
    const std::int64_t piece = served.piece();
    for (const std::int64_t tokens : {-piece, piece - 64, piece + 1, std::int64_t{1} << 31}) {
      EXPECT_THROW(served.cache().plan(batch, {.fixed_split_tokens = tokens}), InvalidArgument)
          << tokens;
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
