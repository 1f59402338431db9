// Pools and copies among processes on GPUs, which map one another's memory by CUDA IPC: ranks that
// share a GPU, and ranks with a GPU each.
#include <algorithm>

#include "kvmesh/sequence_stream.hpp"
#include "tests/runtime/cache/moves/page_transfer_contract.hpp"
#include "tests/runtime/memory/pools_contract.hpp"

namespace kvmesh::test {

using PoolPlaces = testing::Types<OnCuda<MpiRanks, Float32Sizes>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, PoolsContract, PoolPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, PageTransferContract, PoolPlaces, PlaceNames);

/// Pools of 64 KiB per page, layer and plane: 16 pages are a piece of 1 MiB.
TEST(PoolsOnGpus, GrowAndShrinkAndAreMappedByPeersAgain) {
  OnCuda<MpiRanks, Float32Sizes>::run([](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCuda});
    KvCache cache(mesh, {.layers = 2,
                         .q_heads = 4,
                         .kv_heads = 4,
                         .k_dim = 64,
                         .page_size = 64,
                         .pages_per_rank = 256,
                         .max_pages_per_rank = 4096,
                         .dtype = Dtype::kFloat32});
    if (cache.options().max_pages_per_rank == 256) {
      EXPECT_THROW(cache.resize(PageRank{0}, 257), Unsupported);
      GTEST_SKIP() << "the driver gives no memory in pieces";
    }
    const auto page_of = [](const KvPool& pool, std::int64_t page) {
      return static_cast<std::byte*>(pool.v.data) +
             page * pool.v.stride(0) * std::int64_t{sizeof(float)};
    };
    const bool is_first = mesh.page_rank().value == 0;
    const std::size_t before = free_memory(mesh.device());
    for (const std::int64_t pages : {1024, 16, 2048}) {
      EXPECT_EQ(cache.resize(PageRank{0}, pages), 0);
      EXPECT_EQ(cache.allocator().pool_pages(PageRank{0}), pages);
      const float number = 7.5f + static_cast<float>(pages);
      if (is_first) copy_bytes(page_of(cache.pool(1), pages - 1), &number, sizeof number);
      barrier(mesh.world());
      for (Rank rank{0}; rank.value < mesh.kv_parallel(); ++rank.value) {
        if (mesh.membership().page_rank(rank).value != 0) continue;
        const auto pool = cache.peer_pool(rank, 1);
        ASSERT_TRUE(pool.has_value()) << "ranks of one host share pools that grow, too";
        float seen = 0;
        copy_bytes(&seen,
                   static_cast<const std::byte*>(pool->v.data) +
                       (pages - 1) * pool->v.stride(0) * std::int64_t{sizeof(float)},
                   sizeof seen);
        EXPECT_EQ(seen, number) << pages;
      }
      barrier(mesh.world());
    }
    EXPECT_TRUE(mesh.size() > 1 || free_memory(mesh.device()) < before);
    EXPECT_THROW(cache.resize(PageRank{0}, 5000), InvalidArgument);
  });
}

TEST(PoolsOnGpus, GrowNoFurtherThanTheirMemory) {
  OnCuda<MpiRanks, Float32Sizes>::run([](Communicator& comm) {
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCuda});
    KvCache cache(mesh, {.layers = 1,
                         .q_heads = 64,
                         .kv_heads = 64,
                         .k_dim = 512,
                         .page_size = 64,
                         .pages_per_rank = 1,
                         .max_pages_per_rank = 400'000,  // 6 TiB, of which none is there
                         .dtype = Dtype::kFloat32});
    if (cache.options().max_pages_per_rank == 1) GTEST_SKIP() << "no memory in pieces";
    const std::uint64_t digest = cache.digest();
    for (int i = 0; i < 2; ++i) {
      EXPECT_THROW(cache.resize(PageRank{0}, 400'000), OutOfMemory);
      EXPECT_EQ(cache.digest(), digest);
    }
    EXPECT_EQ(cache.resize(PageRank{0}, 3), 0);
    EXPECT_EQ(cache.allocator().pool_pages(PageRank{0}), 3);
  });
}

/// Numbers that half floats have, others in each layer.
std::vector<float> numbers_of(int layer, std::int64_t count) {
  std::vector<float> numbers(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<float>((i + i / 251 + 31 * static_cast<std::size_t>(layer)) % 251);
  }
  return numbers;
}

/// Appends tokens of numbers to the sequence in one step, and writes its states.
void append_numbers(KvCache& cache, SequenceId sequence, std::int64_t tokens) {
  const CacheOptions& options = cache.options();
  StepPlan plan = cache.plan({{sequence, tokens, 0}});
  for (int layer = 0; layer < options.layers; ++layer) {
    if (cache.group_options(cache.group_of(layer)).state_bytes > 0) {
      const TensorView state = cache.sequence_state(layer, sequence);
      if (state.empty()) continue;
      const std::vector<float> numbers = numbers_of(layer, state.elements());
      copy_bytes(state.data, numbers.data(), numbers.size() * sizeof(float));
      continue;
    }
    const std::vector<float> k = numbers_of(layer, tokens * options.kv_heads * options.k_dim);
    std::vector<float> v = k;
    for (float& element : v) element = 250 - element;
    plan.append(layer, tensor(k.data(), {tokens, options.kv_heads, options.k_dim}),
                tensor(v.data(), {tokens, options.kv_heads, options.k_dim}));
  }
}

/// A cache whose only sequence has `tokens` tokens of numbers, the last of a step of its own,
/// exported by CPUs.
std::vector<std::byte> exported_by_cpus(Communicator& comm, CacheOptions options,
                                        std::int64_t tokens) {
  Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCpu});
  KvCache cache(mesh, options);
  const SequenceId sequence = cache.create();
  append_numbers(cache, sequence, tokens - 1);
  append_numbers(cache, sequence, 1);
  MemorySink sink;
  cache.export_sequence(sequence, comm.rank().value == 0 ? &sink : nullptr);
  return {sink.bytes().begin(), sink.bytes().end()};
}

/// Takes `room` bytes.
class FullSink final : public ByteSink {
 public:
  explicit FullSink(std::size_t room) : room_(room) {}
  void write(std::span<const std::byte> bytes) override {
    if (bytes.size() > room_) throw StreamError(StreamError::Reason::kIo, "the disk is full");
    room_ -= bytes.size();
  }

 private:
  std::size_t room_;
};

// With a group of float8 pages, one of a window and one of states.
TEST(SequenceStreamOnGpus, ComesFromCpusAndLeavesTheSame) {
  OnCuda<MpiRanks, Float32Sizes>::run([](Communicator& comm) {
    CacheOptions options{.layers = 6,
                         .q_heads = 4,
                         .kv_heads = 2,
                         .k_dim = 64,
                         .page_size = 4,
                         .pages_per_rank = 200,
                         .dtype = Dtype::kBFloat16,
                         .home_threshold_tokens = 32,
                         .groups = {{.layers = {5}, .dtype = Dtype::kFloat8E4M3},
                                    {.layers = {1, 3}, .window = 40},
                                    {.layers = {2}, .state_bytes = 1040}}};
    const std::vector<std::byte> stream = exported_by_cpus(comm, options, 700);
    Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCuda});
    options.page_size = 16;
    options.pages_per_rank = 50;
    KvCache cache(mesh, options);
    MemorySource source(stream);
    MemorySink again;
    const bool speaks = comm.rank().value == 0;
    const ImportedSequence imported = cache.import_sequence(speaks ? &source : nullptr);
    EXPECT_EQ(cache.length(imported.sequence), 700);
    EXPECT_EQ(cache.allocator(2).first_kept(imported.sequence), 660) << "what the last query sees";
    cache.export_sequence(imported.sequence, speaks ? &again : nullptr);
    EXPECT_TRUE(std::ranges::equal(again.bytes(), stream));
    EXPECT_EQ(speaks, !stream.empty());
  });
}

/// Exports and imports 68 MiB, in batches; also after a sink and a source have ended on the way.
void move_in_batches(Communicator& comm, int head_parallel) {
  constexpr std::int64_t kTokens = 1025;
  CacheOptions options{.layers = 17,
                       .q_heads = 8,
                       .kv_heads = 8,
                       .k_dim = 128,
                       .page_size = 64,
                       .pages_per_rank = kTokens / 64 + 1,
                       .dtype = Dtype::kBFloat16,
                       .home_threshold_tokens = 32};
  const std::vector<std::byte> stream = exported_by_cpus(comm, options, kTokens);
  const bool speaks = comm.rank().value == 0;
  EXPECT_EQ(speaks, stream.size() > std::size_t{68} << 20);
  Mesh mesh(comm, {.head_parallel = head_parallel, .threads = 1, .device = DeviceChoice::kCuda});
  options.page_size = 16;
  options.pages_per_rank = 2 * (kTokens / 16 + 1);
  KvCache cache(mesh, options);
  const auto import = [&](std::span<const std::byte> from) {
    MemorySource source(from);
    return cache.import_sequence(speaks ? &source : nullptr).sequence;
  };
  const auto expect_same = [&](SequenceId sequence) {
    MemorySink again;
    cache.export_sequence(sequence, speaks ? &again : nullptr);
    EXPECT_TRUE(std::ranges::equal(again.bytes(), stream));
  };
  const SequenceId sequence = import(stream);
  expect_same(sequence);
  FullSink full(stream.size() / 2);
  EXPECT_THROW(cache.export_sequence(sequence, speaks ? &full : nullptr), StreamError);
  EXPECT_THROW(import(std::span(stream).first(stream.size() / 2)), StreamError);
  expect_same(import(stream));
  expect_same(sequence);
}

TEST(SequenceStreamOnGpus, MovesInBatches) {
  OnCuda<MpiRanks, Float32Sizes>::run([](Communicator& comm) {
    for (const int head_parallel : {1, 2})
      if (comm.size() % head_parallel == 0) move_in_batches(comm, head_parallel);
  });
}

}  // namespace kvmesh::test
