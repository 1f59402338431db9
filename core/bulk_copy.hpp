// Copies of many pieces that are large together.
#pragma once

#include <cstddef>
#include <cstring>

namespace kvmesh {

/// Copies pieces. If all together are more than a cache keeps, they are written past the caches: a
/// plain copy reads every line of the destination before it writes it, unless it is one piece of
/// tens of megabytes. After the destructor the written bytes are visible to other threads like
/// those of any write.
class BulkCopy {
 public:
  /// Fewer bytes are often used soon, from a cache.
  static constexpr std::size_t kCachedBytes = 4 << 20;

  explicit BulkCopy(std::size_t bytes_of_all) : is_uncached_(bytes_of_all > kCachedBytes) {}
  ~BulkCopy() {
    if (is_uncached_) finish();
  }
  BulkCopy(const BulkCopy&) = delete;
  BulkCopy& operator=(const BulkCopy&) = delete;

  /// Also fetches as many bytes from `next` on, if the caller says which piece it will read then.
  /// If the piece has a few KiB, the nearest cache has both afterwards. REQUIRES: the two ranges do
  /// not overlap.
  void operator()(void* to, const void* from, std::size_t bytes, const void* next = nullptr) const {
    if (is_uncached_) return copy_uncached(to, from, bytes, next);
    if (next != nullptr) fetch(next, bytes);
    std::memcpy(to, from, bytes);
  }

 private:
  static void copy_uncached(void* to, const void* from, std::size_t bytes, const void* next);
  static void fetch(const void* from, std::size_t bytes);
  static void finish();

  bool is_uncached_;
};

}  // namespace kvmesh
