// The page files that a rank counts, and the order in which they are removed.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <vector>

#include "allocator/prefix/eviction.hpp"
#include "kvmesh/prefix.hpp"

namespace kvmesh {

/// A hash function for tables of the standard library: the first bytes of a page's hash.
struct FirstBytes {
  std::size_t operator()(const PageHash& hash) const {
    std::size_t value = 0;
    std::memcpy(&value, hash.bytes.data(), sizeof value);
    return value;
  }
};

/// Records the files of pages and their sizes, and chooses, by the policy of the prefix cache, the
/// file to remove when all together are too large. The caller removes the files.
class KeptFiles {
 public:
  /// `file_bytes` is the size of a usual file.
  KeptFiles(Eviction policy, std::int64_t most_bytes, std::int64_t file_bytes);

  /// Records that a file was written. It replaces an older file of the page.
  void add(const PageHash& hash, std::int64_t bytes);
  /// Makes the file the most recently used. Returns whether it is known.
  bool used(const PageHash& hash);
  /// As used, and counts a hit.
  bool hit(const PageHash& hash);
  /// Forgets a file that is gone, or that another rank counts.
  void forget(const PageHash& hash);
  /// Returns the page whose file is to be removed next; empty if all files together are small
  /// enough. The caller removes the file and calls `left`, or calls `used` if it cannot.
  std::optional<PageHash> excess();
  /// REQUIRES: excess() has returned it.
  void left(const PageHash& hash);

  std::int64_t files() const { return queues_.size(); }
  std::int64_t bytes() const { return bytes_; }

 private:
  struct File {
    PageHash hash;
    std::int64_t bytes = 0;
  };
  PageSlot find(const PageHash& hash) const;
  PageSlot take_slot();
  void free(PageSlot slot);

  std::int64_t most_bytes_, bytes_ = 0;
  EvictionPages pages_;
  EvictionQueues queues_;
  std::vector<File> files_;  // [slot]
  std::vector<PageSlot> free_slots_;
  std::unordered_map<PageHash, PageSlot, FirstBytes> slots_;
};

}  // namespace kvmesh
