// What `kvmesh generate` tells at the end.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kvmesh/allocator.hpp"

namespace kvmesh::launch {

struct GenerateReport {
  std::int64_t prompt_tokens = 0;
  std::int64_t new_tokens = 0;
  double prompt_seconds = 0;
  double new_seconds = 0;
  /// Sent by all ranks together; unset where they went over NCCL, which does not count.
  std::optional<std::uint64_t> combine_bytes{};
};

/// "128 prompt tokens in 0.51 s (251 tokens/s), 64 new tokens in 2.10 s (30.5 tokens/s)" and what
/// the combine moved.
std::string describe(const GenerateReport& report);

/// A line with a bar for each rank: how many of the sequence's pages it holds.
///
///   rank 0  ########  8 pages
std::string picture_of_pages(std::span<const PageId> pages, int ranks);

/// "1.5 MB"
std::string human_bytes(std::uint64_t bytes);

}  // namespace kvmesh::launch
