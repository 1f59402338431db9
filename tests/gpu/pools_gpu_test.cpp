// Pools and copies among processes on GPUs, which map one another's memory by CUDA IPC: ranks that
// share a GPU, and ranks with a GPU each.
#include <numeric>

#include "kvmesh/sequence_stream.hpp"
#include "tests/runtime/memory/page_transfer_contract.hpp"
#include "tests/runtime/memory/pools_contract.hpp"

namespace kvmesh::test {

using PoolPlaces = testing::Types<OnCuda<MpiRanks, Float32Sizes>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, PoolsContract, PoolPlaces, PlaceNames);
INSTANTIATE_TYPED_TEST_SUITE_P(Gpus, PageTransferContract, PoolPlaces, PlaceNames);

/// A cache of 3 layers whose only sequence has `tokens` tokens of numbers, exported by CPUs.
std::vector<std::byte> exported_by_cpus(Communicator& comm, CacheOptions options,
                                        std::int64_t tokens) {
  Mesh mesh(comm, {.threads = 1, .device = DeviceChoice::kCpu});
  KvCache cache(mesh, options);
  const SequenceId sequence = cache.create();
  StepPlan plan = cache.plan({{sequence, tokens, 0}});
  std::vector<float> numbers(static_cast<std::size_t>(tokens * options.kv_heads * options.k_dim));
  std::iota(numbers.begin(), numbers.end(), 1.0f);
  for (int layer = 0; layer < options.layers; ++layer) {
    for (float& number : numbers) number += 0.5f;
    const ConstTensorView rows = tensor(numbers.data(), {tokens, options.kv_heads, options.k_dim});
    plan.append(layer, rows, rows);
  }
  MemorySink sink;
  cache.export_sequence(sequence, comm.rank().value == 0 ? &sink : nullptr);
  return sink.bytes();
}

TEST(SequenceStreamOnGpus, ComesFromCpusAndLeavesTheSame) {
  OnCuda<MpiRanks, Float32Sizes>::run([](Communicator& comm) {
    CacheOptions options{.layers = 3,
                         .q_heads = 4,
                         .kv_heads = 2,
                         .k_dim = 64,
                         .page_size = 4,
                         .pages_per_rank = 200,
                         .dtype = Dtype::kBFloat16,
                         .home_threshold_tokens = 32};
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
    cache.export_sequence(imported.sequence, speaks ? &again : nullptr);
    EXPECT_TRUE(again.bytes() == stream);
    EXPECT_EQ(speaks, !stream.empty());
  });
}

}  // namespace kvmesh::test
