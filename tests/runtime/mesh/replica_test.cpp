// check_replicas: silent while the ranks agree, and exact about the first operation that differs.
#include <gtest/gtest.h>

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "kvmesh/kv_cache.hpp"

namespace kvmesh {
namespace {

CacheOptions tiny_cache() {
  return {.q_heads = 1, .kv_heads = 1, .k_dim = 4, .page_size = 4, .pages_per_rank = 8};
}

// The error of each of three ranks after `script`; empty if check_replicas found nothing.
std::vector<std::string> verdicts(const std::function<void(KvCache&, int rank)>& script,
                                  CacheOptions options = tiny_cache(), int head_parallel = 1) {
  std::vector<std::string> said(4);
  const auto body = [&](Mesh& mesh) {
    KvCache cache(mesh, options);
    script(cache, mesh.rank().value);
    try {
      cache.check_replicas();
    } catch (const DigestMismatch& mismatch) {
      said[static_cast<std::size_t>(mesh.rank().value)] = mismatch.what();
    }
  };
  run_on_threads(4, body, {.head_parallel = head_parallel, .threads = 1});
  return said;
}

void expect_says(const std::string& said, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(said.find(part), std::string::npos) << "'" << said << "' lacks '" << part << "'";
  }
}

TEST(Replicas, AgreeAfterTheSameOperations) {
  const auto script = [](KvCache& cache, int) {
    const SequenceId a = cache.create();
    cache.reserve(a, 9);
    cache.erase(cache.fork(a));
    cache.truncate(a, 0);
  };
  for (const std::string& said : verdicts(script)) EXPECT_EQ(said, "");
  for (const std::string& said : verdicts([](KvCache&, int) {})) EXPECT_EQ(said, "");
}

TEST(Replicas, NameTheOperationAndTheDifferentRanks) {
  const std::vector<std::string> said = verdicts([](KvCache& cache, int rank) {
    const SequenceId a = cache.create();  // operation 0
    const SequenceId b = cache.create();  // operation 1
    cache.reserve(a, 4);                  // operation 2
    cache.reserve(rank == 2 ? a : b, 8);  // operation 3
    cache.truncate(b, 0);                 // operation 4
  });
  for (int other : {0, 1, 3}) {
    expect_says(said[static_cast<std::size_t>(other)],
                {"ranks " + std::to_string(other) + " and 2", "at operation 3", "reserve"});
  }
  expect_says(said[2], {"ranks 2 and 0", "at operation 3", "reserve"});
}

TEST(Replicas, NameTheOperationThatSomeRanksLack) {
  const std::vector<std::string> said = verdicts([](KvCache& cache, int rank) {
    cache.create();
    if (rank == 1) cache.create();
  });
  expect_says(said[0], {"rank 1", "operation 1", "rank 0 did not"});
  expect_says(said[1], {"ranks 1 and 0", "operation 1", "create"});
  expect_says(said[3], {"rank 1", "operation 1", "rank 3 did not"});
}

TEST(Replicas, ReportThatTheOperationIsNoLongerInTheJournal) {
  const std::vector<std::string> said = verdicts([](KvCache& cache, int rank) {
    const SequenceId a = cache.create();
    cache.reserve(a, rank == 3 ? 4 : 8);
    for (int i = 0; i < 400; ++i) cache.truncate(a, 0);
  });
  expect_says(said[3], {"at or before operation"});
}

TEST(Replicas, AreComparedAlongTheHeadsToo) {
  const std::vector<std::string> said = verdicts(
      [](KvCache& cache, int rank) {
        if (rank != 3) cache.create();
      },
      {.q_heads = 2, .kv_heads = 2, .k_dim = 4, .page_size = 4, .pages_per_rank = 8}, 2);
  expect_says(said[2], {"ranks 2 and 3", "operation 0"});
}

}  // namespace
}  // namespace kvmesh
