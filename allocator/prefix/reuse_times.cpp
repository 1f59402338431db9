#include "allocator/prefix/reuse_times.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

constexpr std::uint64_t kOne = 1 << 16;  // of fractions

// Both are in sizes of the pool. Until kFirst pages were published, the waits seen are too short to
// learn from; after kMemory more, all counts are halved, so that old times count less.
constexpr std::uint64_t kFirst = 4, kMemory = 64;

}  // namespace

// The first credit, 3/4 of the pool, is rarely worse than none.
ReuseTimes::ReuseTimes(std::int64_t pages)
    : pages_(static_cast<std::uint64_t>(pages)),
      tick_(std::max<std::uint64_t>(1, pages_ / kTicks)),
      next_(kInterval * tick_),
      credit_(pages_ * 3 / 4) {
  static_assert(bucket(kLongest) == kBuckets && edge(kBuckets) == kLongest);
}

std::uint64_t ReuseTimes::sum(const Counts& counts, int first, int last) {
  std::uint64_t sum = 0;
  for (int hits = first; hits <= last; ++hits) sum += counts[static_cast<std::size_t>(hits)];
  return sum;
}

/// The part of the waits that end in a bucket is taken of those alone that started long enough ago:
/// the others may still end there.
ReuseTimes::Curve ReuseTimes::curve(int first, int last) const {
  const std::uint64_t rate =
      std::min(kOne * sum(started_.front(), first, last) / counted_, kOne << 10);
  Curve curve;
  std::uint64_t left = kOne, waiting = 0, ended = 0;
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
    const std::uint64_t middle = (edge(bucket) + edge(bucket + 1)) / 2;
    const std::uint64_t started = sum(started_[(middle + kInterval / 2) / kInterval], first, last);
    const std::uint64_t ends =
        started == 0 ? 0 : std::min(left, kOne * sum(ended_[bucket], first, last) / started);
    waiting += (edge(bucket + 1) - edge(bucket)) * (2 * left - ends);
    ended += ends;
    left -= ends;
    curve.pages[bucket + 1] = waiting * rate;
    curve.hits[bucket + 1] = ended * rate;
  }
  return curve;
}

/// For each limit of the pages with few hits, the others get the room that is left. Of equal ones
/// the smallest credit.
ReuseTimes::Choice ReuseTimes::choose(int divide) const {
  const Curve few = curve(0, divide - 1), many = curve(divide, kMostHits);
  const std::uint64_t pages = pages_ * 2 * kOne / tick_ * kOne;
  Choice best;
  std::size_t to = kBuckets;
  for (std::size_t from = 0; from <= kBuckets && few.pages[from] <= pages; ++from) {
    const std::uint64_t room = pages - few.pages[from];
    while (many.pages[to] > room) --to;
    std::uint64_t limit = edge(to) * 256, hits = few.hits[from] + many.hits[to];
    if (to < kBuckets) {  // a part, in 256ths, of the next bucket
      const std::uint64_t pages_256th = (many.pages[to + 1] - many.pages[to]) / 256 + 1;
      const std::uint64_t part = (room - many.pages[to]) / pages_256th;
      limit += part * (edge(to + 1) - edge(to));
      hits += part * (many.hits[to + 1] - many.hits[to]) / 256;
    }
    const std::uint64_t longer = limit - std::min(limit, edge(from) * 256);
    if (hits >= best.hits) best = {hits, longer * tick_ / 256};
  }
  return best;
}

/// The new credit is the mean of the last one and the best one. Another division must be better by
/// 1/8, since the credits of the two have nothing to do with each other.
void ReuseTimes::learn() {
  next_ += kInterval * tick_;
  counted_ += kInterval * tick_;
  if (now_ >= kFirst * pages_) {
    const int other_divide = kMostHits + 1 - divide_;
    const Choice same = choose(divide_), other = choose(other_divide);
    const bool changes = other.hits > same.hits + same.hits / 8;
    credit_ = changes ? other.credit : (credit_ + same.credit) / 2;
    if (changes) divide_ = other_divide;
  }
  std::shift_right(started_.begin(), started_.end(), 1);
  started_[0] = started_[1];
  if (counted_ >= kMemory * pages_) forget_half();
}

void ReuseTimes::forget_half() {
  counted_ /= 2;
  const auto halve = [](Counts& counts) {
    for (std::uint64_t& count : counts) count /= 2;
  };
  std::ranges::for_each(started_, halve);
  std::ranges::for_each(ended_, halve);
}

}  // namespace kvmesh
