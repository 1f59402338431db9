// Runs a script of cache operations on every rank and placement, and expects only right numbers.
#pragma once

#include <functional>
#include <string>

#include "launch/verify/checked_cache.hpp"
#include "tests/contracts/places.hpp"

namespace kvmesh::test {

using verify::CheckedCache;
using verify::StepOptions;

using CacheScript = std::function<void(CheckedCache&)>;

inline void expect_good(CheckedCache& cache) {
  cache.check_replicas();
  // One of several ranks may have no row.
  if (cache.cache().mesh().size() == 1) {
    EXPECT_GT(cache.findings().rows(), 0);
  }
  for (const std::string& message : cache.findings().messages()) ADD_FAILURE() << message;
}

inline void on_each_placement(const Place& place, const CacheOptions& options,
                              const CacheScript& script, int head_parallel = 1) {
  place.run([&](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    if (comm.size() % head_parallel != 0) return;
    const auto mesh =
        place.mesh(comm, {.head_parallel = head_parallel,
                          .threads = 2,
                          .device = place.device,
                          .membership = rotated_membership(comm.size() / head_parallel)});
    for (Placement placement : {Placement::kBalanced, Placement::kStriped, Placement::kPacked}) {
      SCOPED_TRACE(name(placement));
      CacheOptions placed = options;
      placed.placement = placement;
      CheckedCache cache(*mesh, placed, seed);
      script(cache);
      expect_good(cache);
    }
  });
}

/// Makes a sequence of `tokens` tokens, of which the newest `queries` are queries.
inline SequenceId prompt(CheckedCache& cache, std::int64_t tokens, std::int64_t queries = 2) {
  const SequenceId sequence = cache.create();
  EXPECT_TRUE(cache.step({{sequence, tokens, std::min(tokens, queries)}}));
  return sequence;
}

inline std::vector<SequenceId> prompts(CheckedCache& cache,
                                       const std::vector<std::int64_t>& lengths) {
  std::vector<SequenceId> sequences;
  for (std::int64_t tokens : lengths) sequences.push_back(prompt(cache, tokens));
  return sequences;
}

/// Appends `append` tokens to each and queries `queries` rows of each (-1: the new ones).
inline std::vector<BatchEntry> batch_of(const std::vector<SequenceId>& sequences,
                                        std::int64_t append, std::int64_t queries = -1) {
  std::vector<BatchEntry> batch;
  for (SequenceId sequence : sequences) batch.push_back({sequence, append, queries});
  return batch;
}

}  // namespace kvmesh::test
