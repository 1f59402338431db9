// The page files that a rank counts, in the order of their last use.
#pragma once

#include <cstdint>
#include <cstring>
#include <list>
#include <optional>
#include <unordered_map>

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

/// Knows which files of pages there are and which goes first when they are too large together. The
/// caller removes the files.
class KeptFiles {
 public:
  explicit KeptFiles(std::int64_t most_bytes) : most_bytes_(most_bytes) {}

  /// A file was written, as the one used last. It takes the place of an older one of the page.
  void add(const PageHash& hash, std::int64_t bytes);
  /// The file counts as used last. Returns whether it is known.
  bool used(const PageHash& hash);
  /// The file is gone, or another rank's.
  void forget(const PageHash& hash);
  /// The page whose use is the oldest, while the files are larger together than they may be: the
  /// caller removes its file, and then it is to `forget`; or it cannot, and the file is `used`.
  std::optional<PageHash> excess() const;

  std::int64_t files() const { return static_cast<std::int64_t>(by_use_.size()); }
  std::int64_t bytes() const { return bytes_; }

 private:
  struct File {
    PageHash hash;
    std::int64_t bytes = 0;
  };
  std::int64_t most_bytes_, bytes_ = 0;
  std::list<File> by_use_;  // the oldest use first
  std::unordered_map<PageHash, std::list<File>::iterator, FirstBytes> places_;
};

}  // namespace kvmesh
