// The combine's kernels for any number of ranks on one GPU: each rank in turn packs or scales, the
// host moves the messages or adds, each rank in turn merges.
#include "comm/combine/nccl/device_combine_params.hpp"
#include "tests/gpu/device_combine_run.hpp"

namespace kvmesh::test {
namespace {

using Floats = std::vector<float>;

std::uint64_t seed() {
  const char* given = std::getenv("KVMESH_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
}

Floats poisoned(std::int64_t count) { return Floats(static_cast<std::size_t>(count), kNan); }

/// One rank's plan and device memory.
struct RankOnDevice {
  RankOnDevice(CombineCase& test, int rank, CombineStrategy strategy, Dtype dtype, std::int64_t gap)
      : plan(plan_device_combine({test.tokens, test.heads, test.dim}, options_of(test, strategy),
                                 rank, static_cast<int>(test.partials.size()))),
        io(test, rank, dtype, gap),
        send(poisoned(packs() ? plan.sent_floats : plan.reduced_floats())),
        receive(poisoned(packs() ? plan.received_floats : plan.block_floats())),
        lses(poisoned(plan.ranks * plan.rows())),
        table(table_of(plan)) {}

  static Floats table_of(const DeviceCombinePlan& plan) {
    const std::vector<std::byte> bytes = device_table(plan);
    Floats floats(bytes.size() / sizeof(float));
    std::memcpy(floats.data(), bytes.data(), bytes.size());
    return floats;
  }
  bool packs() const { return plan.strategy == CombineStrategy::kAllToAll; }
  cuda::CombineParams params() const { return params(io.partial()); }
  cuda::CombineParams params(const Partial& mine) const {
    const DeviceCombineMemory memory{table.data(), static_cast<float*>(send.data()),
                                     static_cast<float*>(receive.data()),
                                     static_cast<float*>(lses.data())};
    return device_params(plan, memory, mine, io.output());
  }

  DeviceCombinePlan plan;
  DeviceCase io;
  DeviceFloats send, receive, lses, table;
};

using Ranks = std::vector<std::unique_ptr<RankOnDevice>>;

void exchange_messages(const Ranks& ranks) {
  for (std::size_t to = 0; to < ranks.size(); ++to) {
    Floats received = ranks[to]->receive.get();
    for (std::size_t from = 0; from < ranks.size(); ++from) {
      if (from == to) continue;
      const Floats sent = ranks[from]->send.get();
      const RowMessage out = ranks[from]->plan.sent[to];
      const RowMessage in = ranks[to]->plan.received[from];
      ASSERT_EQ(out.rows, in.rows);
      std::copy_n(sent.begin() + out.offset, out.rows * ranks[to]->plan.row_floats,
                  received.begin() + in.offset);
    }
    ranks[to]->receive.set(received);
  }
}

/// As NCCL's all-gather, or its all-reduce of the maximum.
void gather_lses(CombineCase& test, const Ranks& ranks) {
  Floats all;
  for (HeldPartial& held : test.partials) {
    for (std::int64_t t = 0; t < test.tokens; ++t) {
      const auto* row = &held.lse_values[static_cast<std::size_t>(held.lse_index(t, 0))];
      all.insert(all.end(), row, row + test.heads);
    }
  }
  if (reduces_maxima(ranks[0]->plan)) {
    const auto rows = static_cast<std::size_t>(test.tokens * test.heads);
    for (std::size_t i = rows; i < all.size(); ++i) {
      all[i % rows] = std::fmax(all[i % rows], all[i]);  // passes over NaN, as NCCL's does
      all[i] = kNan;
    }
  }
  for (const auto& rank : ranks) rank->lses.set(all);
}

/// As NCCL's reduce-scatter, or its all-reduce.
void reduce_blocks(const Ranks& ranks) {
  const DeviceCombinePlan& plan = ranks[0]->plan;
  Floats sum(static_cast<std::size_t>(plan.reduced_floats()));
  for (const auto& rank : ranks) {
    const Floats mine = rank->send.get();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += mine[i];
  }
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const std::int64_t at =
        plan.blocks == 1 ? 0 : static_cast<std::int64_t>(r) * plan.block_floats();
    ranks[r]->receive.set(Floats(sum.begin() + at, sum.begin() + at + plan.block_floats()));
  }
}

Ranks combine(CombineCase& test, CombineStrategy strategy, Dtype dtype, std::int64_t gap) {
  Ranks ranks;
  for (int r = 0; r < static_cast<int>(test.partials.size()); ++r) {
    ranks.push_back(std::make_unique<RankOnDevice>(test, r, strategy, dtype, gap));
  }
  const OwnStream stream;
  const auto each = [&](auto launch) {
    for (const auto& rank : ranks) check(launch(rank->params(), stream.get()));
    check(cudaStreamSynchronize(stream.get()));
  };
  if (strategy == CombineStrategy::kAllToAll) {
    for (const auto& rank : ranks) {  // a rank that sends nothing has no buffer
      if (rank->plan.sent_floats > 0) check(cuda::launch_pack(rank->params(), stream.get()));
    }
    check(cudaStreamSynchronize(stream.get()));
    exchange_messages(ranks);
    each(cuda::launch_merge);
  } else {
    gather_lses(test, ranks);
    each(cuda::launch_rescale);
    reduce_blocks(ranks);
    each(cuda::launch_finish);
  }
  return ranks;
}

class CombineKernels : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no GPU";
  }
};

TEST_P(CombineKernels, MatchFloat64) {
  const std::uint64_t number = seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(number));
  std::mt19937_64 random(number);
  for (int i = 0; i < 12; ++i) {
    CombineCase test = random_case(random, GetParam());
    if (test.tokens == 0) continue;
    for (CombineStrategy strategy : {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter,
                                     CombineStrategy::kAllReduce}) {
      if (test.scatter == Scatter::kOwner && strategy != CombineStrategy::kAllToAll) continue;
      SCOPED_TRACE(std::string(name(strategy)) + ", " + test.describe());
      const Ranks ranks = combine(test, strategy, Dtype::kFloat32, i % 4);
      for (const auto& rank : ranks) {
        expect_close(rank->io.result(), rank->io.expected(), test.dim);
      }
    }
  }
}

TEST_P(CombineKernels, NanRowIsNotEmpty) {
  for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
    CombineCase test = unusual_case(GetParam(), scatter);
    for (CombineStrategy strategy : {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter,
                                     CombineStrategy::kAllReduce}) {
      SCOPED_TRACE(std::string(name(strategy)) + ", " + test.describe());
      const Ranks ranks = combine(test, strategy, Dtype::kFloat32, 0);
      for (const auto& rank : ranks) {
        expect_close(rank->io.result(), rank->io.expected(), test.dim);
      }
    }
  }
}

/// Stores a rank's partial in its messages, as attention does, and returns the tensors there.
Partial store_in_messages(CombineCase& test, const RankOnDevice& rank) {
  const Partial there = partial_in_messages(rank.plan, static_cast<float*>(rank.send.data()),
                                            rank.io.partial().o.device);
  const HeldPartial& held = test.partials[static_cast<std::size_t>(rank.plan.rank)];
  Floats messages = poisoned(rank.plan.sent_floats);
  for (std::int64_t t = 0; t < test.tokens; ++t) {
    for (std::int64_t h = 0; h < test.heads; ++h) {
      const auto* o = &held.o_values[static_cast<std::size_t>(held.o_index(t, h))];
      std::copy_n(o, test.dim, messages.begin() + t * there.o.stride(0) + h * there.o.stride(1));
      const auto lse = t * there.lse.stride(0) + h * there.lse.stride(1) + test.dim;
      messages[static_cast<std::size_t>(lse)] =
          held.lse_values[static_cast<std::size_t>(held.lse_index(t, h))];
    }
  }
  rank.send.set(messages);
  return there;
}

TEST_P(CombineKernels, MergePartialsInTheMessagesToTheSameBits) {
  if (GetParam() == 1) GTEST_SKIP() << "one rank has no messages";
  const OwnStream stream;
  for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
    for (const std::int64_t dim : {128, 10}) {
      CombineCase test = full_case(GetParam(), 7, 9, dim, scatter);
      SCOPED_TRACE(test.describe());
      const Ranks packed = combine(test, CombineStrategy::kAllToAll, Dtype::kFloat32, 0);
      std::vector<Result> expected;
      for (const auto& rank : packed) expected.push_back(rank->io.result());
      std::vector<Partial> partials;
      for (const auto& rank : packed) partials.push_back(store_in_messages(test, *rank));
      exchange_messages(packed);
      for (std::size_t r = 0; r < packed.size(); ++r) {
        packed[r]->io.poison();
        check(cuda::launch_merge(packed[r]->params(partials[r]), stream.get()));
      }
      check(cudaStreamSynchronize(stream.get()));
      for (std::size_t r = 0; r < packed.size(); ++r) {
        EXPECT_TRUE(same_bits(packed[r]->io.result(), expected[r])) << "rank " << r;
      }
    }
  }
}

TEST_P(CombineKernels, RoundOnceToTheOutputType) {
  CombineCase test = full_case(GetParam(), 7, 5, 192, Scatter::kTokens);
  const Ranks exact = combine(test, CombineStrategy::kAllToAll, Dtype::kFloat32, 0);
  const Ranks rounded = combine(test, CombineStrategy::kAllToAll, Dtype::kBFloat16, 4);
  for (std::size_t r = 0; r < exact.size(); ++r) {
    Result expected = exact[r]->io.result();
    for (float& value : expected.o) value = bfloat16_to_float(float_to_bfloat16(value));
    EXPECT_TRUE(same_bits(rounded[r]->io.result(), expected)) << "rank " << r;
  }
}

// Up to 2, 4, 8 and 32 ranks, and more: each has code of its own; past 16 messages are in memory.
INSTANTIATE_TEST_SUITE_P(Ranks, CombineKernels,
                         testing::Values(1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 40));

}  // namespace
}  // namespace kvmesh::test
