// The folders of pages' files, one for each range of heads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/tiers/file_calls.hpp"
#include "runtime/tiers/found_files.hpp"

namespace kvmesh {

struct PageFolder {
  int first_head = 0, heads = 0;
  std::string path{};
};

/// The folders of one model and its layers: this rank's own, and those of ranks with other heads,
/// in this run or earlier ones.
class PageFolders {
 public:
  /// The own folder has the heads [first_head, first_head + heads), which are part `part` of all.
  PageFolders(std::string parent, int first_head, int heads, int part);

  /// Lists the other folders that there are.
  void find();
  const PageFolder& own() const { return folders_.front(); }
  static std::string path(const PageFolder& folder, const PageHash& hash);
  /// Returns the folders whose files together have all own heads, in their order; empty if some
  /// are missing.
  std::optional<std::vector<const PageFolder*>> cover(const PageHash& hash) const;

  /// Returns the files in all folders. Removes parts of files that killed processes have left.
  std::vector<FoundPage> files(FileCalls& calls) const;
  /// Returns the paths of a page's files that this rank's part counts, if they exist.
  std::vector<std::string> counted_paths(const PageHash& hash) const;
  /// Returns the size of these files together.
  std::int64_t bytes_of(const PageHash& hash) const;

 private:
  int part_of(const PageFolder& folder, const PageHash& hash) const;

  std::string parent_;
  int part_;
  std::vector<PageFolder> folders_;  // the own one first
};

}  // namespace kvmesh
