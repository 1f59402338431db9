// The page files that earlier runs have left, and how the ranks divide them without a message.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "kvmesh/prefix.hpp"

namespace kvmesh {

/// The ranks that share the files: `parts` ranges of heads, `ranks` ranks of each.
struct FileSharers {
  std::int64_t bytes = 0;  ///< the most that all together keep
  int parts = 1, ranks = 1;
  int part = 0, rank = 0;  ///< this rank's

  std::int64_t bytes_per_rank() const { return bytes / (std::int64_t{parts} * ranks); }
};

/// Returns the part that counts a file with the heads [first, first + heads), where each part has
/// `part_heads` heads. A file that has heads of several parts is counted by one of them.
int part_of_file(int first, int heads, int part_heads, const PageHash& hash);

/// All files of a page that one part counts.
struct FoundPage {
  std::filesystem::file_time_type time;  ///< that of the last use
  int part = 0;
  PageHash hash{};
  std::int64_t bytes = 0;
};

/// The pages that this rank removes, and those that it counts: the oldest first.
struct FoundShare {
  std::vector<FoundPage> excess, kept;
};

/// Puts the files of one page and part together. Returns the pages in the order of their times.
std::vector<FoundPage> merge_found(std::vector<FoundPage> files);

/// Returns this rank's share. The oldest pages leave until all others together are within the
/// limit. The rest is divided so that each rank is within its own limit, as far as whole pages can
/// be divided so. A page goes to the rank that its hash names, and on to the next one if that is
/// full, so two ranks that do not find the same pages, because one has removed some meanwhile,
/// still divide nearly all others alike: few are counted twice, or by no rank.
FoundShare share_found(std::span<const FoundPage> pages, const FileSharers& sharers);

}  // namespace kvmesh
