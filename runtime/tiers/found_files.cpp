#include "runtime/tiers/found_files.hpp"

#include <algorithm>
#include <cstring>
#include <tuple>

namespace kvmesh {
namespace {

/// Bytes [8 at, 8 at + 8) of a hash. XXH3 fills the first 16 bytes alone.
std::uint64_t word(const PageHash& hash, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, hash.bytes.data() + sizeof value * at, sizeof value);
  return value;
}

}  // namespace

int part_of_file(int first, int heads, int part_heads, const PageHash& hash) {
  const int first_part = first / part_heads, last_part = (first + heads - 1) / part_heads;
  const auto parts = static_cast<std::uint64_t>(last_part - first_part + 1);
  return first_part + static_cast<int>(word(hash, 0) % parts);
}

std::vector<FoundPage> merge_found(std::vector<FoundPage> files) {
  const auto name = [](const FoundPage& page) { return std::tuple(page.hash.bytes, page.part); };
  std::ranges::sort(files, {}, name);
  std::vector<FoundPage> pages;
  for (const FoundPage& file : files) {
    if (pages.empty() || name(pages.back()) != name(file)) {
      pages.push_back(file);
      continue;
    }
    pages.back().time = std::max(pages.back().time, file.time);
    pages.back().bytes += file.bytes;
  }
  std::ranges::stable_sort(pages, {}, &FoundPage::time);
  return pages;
}

FoundShare share_found(std::span<const FoundPage> pages, const FileSharers& sharers) {
  std::int64_t over = -sharers.bytes;
  for (const FoundPage& page : pages) over += page.bytes;
  const auto ranks = static_cast<std::size_t>(sharers.ranks);
  std::vector<std::int64_t> shares(ranks);
  FoundShare mine;
  for (const FoundPage& page : pages) {
    const bool leaves = over > 0;
    if (leaves) over -= page.bytes;
    if (page.part != sharers.part) continue;
    std::size_t rank = word(page.hash, 1) % ranks;
    if (!leaves) {
      const auto has_room = [&](std::size_t at) {
        return shares[at] + page.bytes <= sharers.bytes_per_rank();
      };
      for (std::size_t i = 0; i < ranks && !has_room(rank); ++i) rank = (rank + 1) % ranks;
      if (!has_room(rank))
        rank = static_cast<std::size_t>(std::ranges::min_element(shares) - shares.begin());
      shares[rank] += page.bytes;
    }
    if (rank == static_cast<std::size_t>(sharers.rank))
      (leaves ? mine.excess : mine.kept).push_back(page);
  }
  return mine;
}

}  // namespace kvmesh
