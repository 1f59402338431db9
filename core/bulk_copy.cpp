#include "core/bulk_copy.hpp"

#include "core/numbers/highway_targets.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/bulk_copy.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// foreach_target.h must come before these.
#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace kvmesh::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kLine = 64;

/// Whole lines of the destination are streamed; an incomplete one would be read, changed, written.
/// The next piece is fetched along with them: processors do not guess where it is, and wait for its
/// first lines otherwise. A fetch past its end reads nothing, wherever that is.
void CopyUncached(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes,
                  const std::uint8_t* next) {
  const hn::CappedTag<std::uint8_t, kLine> lanes;
  const std::size_t to_line = (0 - reinterpret_cast<std::uintptr_t>(to)) % kLine;
  const std::size_t first = std::min(bytes, to_line);
  const std::size_t last = first + (bytes - first) / kLine * kLine;
  std::memcpy(to, from, first);
  for (std::size_t line = first; line < last; line += kLine) {
    hwy::Prefetch(next + line);
    for (std::size_t at = line; at < line + kLine; at += hn::Lanes(lanes))
      hn::Stream(hn::LoadU(lanes, from + at), lanes, to + at);
  }
  std::memcpy(to + last, from + last, bytes - last);
}

}  // namespace kvmesh::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmesh {

HWY_EXPORT(CopyUncached);

void BulkCopy::copy_uncached(void* to, const void* from, std::size_t bytes, const void* next) {
  HWY_DYNAMIC_DISPATCH(CopyUncached)
  (static_cast<std::uint8_t*>(to), static_cast<const std::uint8_t*>(from), bytes,
   static_cast<const std::uint8_t*>(next == nullptr ? from : next));
}

void BulkCopy::fetch(const void* from, std::size_t bytes) {
  constexpr std::size_t kLine = 64;
  for (std::size_t line = 0; line < bytes; line += kLine)
    hwy::Prefetch(static_cast<const std::uint8_t*>(from) + line);
}

void BulkCopy::finish() { hwy::FlushStream(); }

}  // namespace kvmesh
#endif
