// The page files that a rank counts, and the order in which they leave.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <unordered_map>
#include <vector>

#include "allocator/prefix/eviction.hpp"
#include "kvmesh/prefix.hpp"

namespace kvmesh {

/// For tables of the standard library: a page's hash is one already.
struct FirstBytes {
  std::size_t operator()(const PageHash& hash) const {
    std::size_t value = 0;
    std::memcpy(&value, hash.bytes.data(), sizeof value);
    return value;
  }
};

/// Knows which files of pages there are, and which goes first, by the policy of the prefix cache,
/// when they are too large together. The caller removes the files.
class KeptFiles {
 public:
  /// `file_bytes`: of a usual file.
  KeptFiles(Eviction policy, std::int64_t most_bytes, std::int64_t file_bytes);

  /// A file was written. It takes the place of an older one of the page.
  void add(const PageHash& hash, std::int64_t bytes);
  /// The file counts as used last. Returns whether it is known.
  bool used(const PageHash& hash);
  /// As used, and as one that a lookup has found.
  bool hit(const PageHash& hash);
  /// The file is gone, or another rank's.
  void forget(const PageHash& hash);
  /// The page that goes first, while the files are larger together than they may be: the caller
  /// removes its file, and then it has `left`; or it cannot, and the file is `used`.
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
