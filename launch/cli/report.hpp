// The report of `kvmesh generate`, `export` and `import`.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "launch/cli/run.hpp"

namespace kvmesh::launch {

struct GenerateReport {
  struct Turn {
    Run run;
    std::string text;
  };
  std::string command;  ///< generate, export or import
  std::string model;
  std::vector<Turn> turns;  ///< of the conversation
  CacheOptions cache;
  TierStatistics tiers{};     ///< of all ranks together
  std::vector<PageId> pages;  ///< of the sequence
  int kv_parallel = 1;
  int head_parallel = 1;
  /// Bytes sent by all ranks together; unset over NCCL, which does not count them.
  std::optional<std::uint64_t> combine_bytes;
  /// Bytes of a rank's pools, if their size was computed from the memory.
  std::optional<std::int64_t> pool_bytes;
  /// True if a single rank wrote the same tokens; unset: not compared.
  std::optional<bool> ranks_check;
};

/// A line for each turn, the bytes that the combine moved, and the pages of each rank.
///
///   turn 2: 192 prompt tokens, of which 176 cached, in 0.05 s (320 tokens/s), 64 new tokens in ...
std::string describe(const GenerateReport& report);
std::string describe_check(int ranks, bool same);
std::string to_json(const GenerateReport& report);

/// A line with a bar for each kv rank, named by its world ranks: the number of the sequence's pages
/// on it.
///
///   rank 0  ########  8 pages            ranks 0-1  ########  8 pages
std::string picture_of_pages(std::span<const PageId> pages, int kv_parallel, int head_parallel);

/// "1.5 MB"
std::string human_bytes(double bytes);

}  // namespace kvmesh::launch
