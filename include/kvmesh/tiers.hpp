// Tiers of a cache: where pages go that the device has no room for, and come back from.
#pragma once

#include <cstdint>
#include <string>

#include "kvmesh/api.h"

namespace KVMESH_API kvmesh {

/// A published page that is evicted from the device is stored in the first tier that exists; a page
/// that leaves the host tier is stored in the file tier. match_prefix brings pages back. REQUIRES:
/// the prefix cache is enabled; no layer group holds states. Equal on every rank.
struct TierOptions {
  /// Memory of each rank's host tier, rounded down to whole pages: pinned on a GPU. 0: none. The
  /// pages of each tier leave in the order of PrefixOptions::eviction. Layer groups share it by
  /// their page_share, as they share `file_bytes`.
  std::int64_t host_bytes = 0;
  /// The folder of the file tier, which every rank can read and write; it is made if it is missing.
  /// Empty: none.
  std::string directory{};
  /// Part of the name of the model's folder below it: letters, digits, '.', '_' and '-'. Models
  /// with other weights need other names.
  std::string model = "model";
  /// The most bytes that the ranks together keep there, each an equal part of them. Files of
  /// earlier runs count, also those of other numbers of ranks and of other `head_parallel`. They
  /// are in the order of their last use at first, and when a cache is made, they leave only if all
  /// together are over the limit: the oldest first.
  std::int64_t file_bytes = std::int64_t{16} << 30;
  /// Files, and folders made for them, are on the disk before a store is completed. Without it a
  /// crash of the machine may leave files whose checksums are wrong: they are misses.
  bool durable = false;
  /// Files are read and written around the system's cache (O_DIRECT), where the file system can. It
  /// is for pages of about a MiB or more. Stores gain from it, durable ones most, and the system's
  /// memory stays free for other uses; but a file that is read again is read from the disk again.
  bool direct = false;
  /// The most pages that one operation of the cache stores; the rest of what it evicts is dropped,
  /// and counted (TierCounts::drops).
  /// The pages that were evicted last are stored: of one prompt those nearest to its beginning.
  int stores_per_operation = 1024;

  bool enabled() const { return host_bytes > 0 || !directory.empty(); }
};

/// Counts of this rank since the cache was made. A page counts on the rank that stores or loads it.
struct TierCounts {
  std::int64_t pages = 0;    ///< that the tier has now; of the file tier those of this rank's share
  std::int64_t stores = 0;   ///< pages written
  std::int64_t loads = 0;    ///< pages read
  std::int64_t drops = 0;    ///< stores refused because too many were under way, or more than
                             ///< TierOptions::stores_per_operation
  std::int64_t removed = 0;  ///< pages that left for want of room
};

/// Counts of the reasons why pages of files were no hits or were not stored, and why files over the
/// limit were not removed.
struct FileFaults {
  std::int64_t corrupt = 0;    ///< a wrong checksum, or another page's content
  std::int64_t truncated = 0;  ///< shorter than its header says
  std::int64_t foreign = 0;    ///< another format, version, model or shape
  std::int64_t full = 0;       ///< no room on the disk, or the quota is used up
  std::int64_t denied = 0;     ///< read-only, or no permission
  std::int64_t io = 0;         ///< any other error of the system
};

struct TierStatistics {
  TierCounts host{};
  TierCounts file{};
  FileFaults faults{};
  /// Pages that came back by matches, on all ranks together: equal on every rank.
  std::int64_t pages_back = 0;
};

}  // namespace kvmesh
