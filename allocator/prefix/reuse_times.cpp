#include "allocator/prefix/reuse_times.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

constexpr std::uint64_t kOne = 1 << 16;  // of fractions

// Both are in sizes of the pool. Until kFirst pages were published, the waits seen are too few to
// learn from; after kMemory more, all counts are halved, so that old times count less.
constexpr std::uint64_t kFirst = 2, kMemory = 64;

// A credit moves by a quarter of the way to the best one. A finer division of pages must give
// 1/32 more hits: the fewer waits a limit is learned from, the more it is chance.
constexpr std::int64_t kPace = 4;
constexpr std::uint64_t kFiner = 32;

// In sizes of the pool: what patient credits add for pages with hits and for ends, and the time
// after which the hits of the trials are halved.
constexpr std::int64_t kPatience = 2, kPatienceForEnds = -1;
constexpr std::uint64_t kTrialMemory = 4;

}  // namespace

/// A longer limit of a group, and how much it gives for its room.
struct ReuseTimes::Step {
  std::size_t to = 0;
  std::uint64_t worth = 0;
};

// The first credits, one size of the pool, are rarely worse than none.
ReuseTimes::ReuseTimes(std::int64_t pages)
    : pages_(static_cast<std::uint64_t>(pages)),
      tick_(std::max<std::uint64_t>(1, pages_ / kTicks)),
      cell_(kCell * tick_),
      next_(cell_),
      credits_{0, pages, pages, pages, 0},
      waits_(kLongest / kCell + 1) {
  static_assert(bucket(kLongest) == kBuckets && edge(kBuckets) == kLongest);
  static_assert(kKinds == kEnd + 1 && kInterval % kCell == 0);
}

std::uint64_t ReuseTimes::sum(const Counts& counts, int first, int last) {
  std::uint64_t sum = 0;
  for (int kind = first; kind <= last; ++kind) sum += counts[static_cast<std::size_t>(kind)];
  return sum;
}

std::int64_t ReuseTimes::credit(int kind, bool is_patient) const {
  const std::int64_t learned = credits_[static_cast<std::size_t>(kind)];
  if (!is_patient || kind == 0) return learned;
  const auto pages = static_cast<std::int64_t>(pages_);
  return learned + (kind == kEnd ? kPatienceForEnds : kPatience) * pages;
}

/// Returns the waits that have not ended and have come to the bucket. Those of a cell are spread
/// evenly over the cell.
ReuseTimes::Counts ReuseTimes::waiting_in(std::size_t bucket) const {
  const std::uint64_t begin = edge(bucket), end = edge(bucket + 1);
  Counts waiting{};
  for (std::uint64_t at = begin / kCell; at * kCell < end && at <= waits_.current(); ++at) {
    const std::uint64_t ticks = std::min(end, (at + 1) * kCell) - std::max(begin, at * kCell);
    const OpenWaits::Counts& cell = waits_[waits_.current() - at];
    for (std::size_t kind = 0; kind < kKinds; ++kind) waiting[kind] += ticks * cell[kind];
  }
  for (std::uint64_t& count : waiting) count /= kCell;
  return waiting;
}

/// A life table (Kaplan and Meier): the part of the waits that reach a bucket which ends there. A
/// wait that has not ended counts for the buckets before the one that it has come to, and half for
/// that one.
ReuseTimes::Curve ReuseTimes::curve(const Waiting& all_waiting, int first, int last) const {
  const std::uint64_t rate = std::min(
      kOne * sum(started_, first, last) / std::max<std::uint64_t>(1, counted_), kOne << 10);
  std::array<std::uint64_t, kBuckets> waiting{};
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket)
    waiting[bucket] = sum(all_waiting[bucket], first, last);
  std::array<std::uint64_t, kBuckets> reach{};
  std::uint64_t reached = sum(outlasted_, first, last);
  for (std::size_t bucket = kBuckets; bucket-- > 0;)
    reach[bucket] = reached += sum(ended_[bucket], first, last) + waiting[bucket];

  Curve curve;
  std::uint64_t left = kOne, waited = 0, ended = 0;
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) {
    const std::uint64_t reached_twice = 2 * reach[bucket] - waiting[bucket];
    const std::uint64_t ends =
        reached_twice == 0
            ? 0
            : std::min(left, left * 2 * sum(ended_[bucket], first, last) / reached_twice);
    waited += (edge(bucket + 1) - edge(bucket)) * (2 * left - ends);
    ended += ends;
    left -= ends;
    curve.pages[bucket + 1] = waited * rate;
    curve.hits[bucket + 1] = ended * rate;
  }
  return curve;
}

/// The longer limit with the most hits for its room.
ReuseTimes::Step ReuseTimes::best_step(const Curve& curve, std::size_t from) {
  Step best;
  for (std::size_t to = from + 1; to <= kBuckets; ++to) {
    const std::uint64_t hits = curve.hits[to] - curve.hits[from];
    const std::uint64_t pages = (curve.pages[to] - curve.pages[from]) >> 12;
    const std::uint64_t worth = (hits << 20) / (pages + 1);  // hits: less than 2^43
    if (worth > best.worth) best = {to, worth};
  }
  return best;
}

/// Makes the limits longer where that gives the most, until the pool is full. The last one is made
/// longer by a part, in 256ths.
ReuseTimes::Limits ReuseTimes::fill(std::span<const Curve> groups) const {
  Limits limits;
  std::array<std::size_t, kKinds> at{};
  std::uint64_t room = pages_ * 2 * kOne / tick_ * kOne;
  for (;;) {
    std::size_t group = 0;
    Step step;
    for (std::size_t it = 0; it < groups.size(); ++it) {
      const Step other = best_step(groups[it], at[it]);
      if (other.worth > step.worth) group = it, step = other;
    }
    if (step.worth == 0) return limits;
    const Curve& curve = groups[group];
    const std::uint64_t pages = curve.pages[step.to] - curve.pages[at[group]];
    const std::uint64_t hits = curve.hits[step.to] - curve.hits[at[group]];
    const std::uint64_t part = pages <= room ? 256 : room / (pages / 256 + 1);
    limits.of_group[group] = edge(at[group]) * 256 + (edge(step.to) - edge(at[group])) * part;
    limits.hits += hits / 256 * part;
    if (pages > room) return limits;
    room -= pages;
    at[group] = step.to;
  }
}

/// Chooses the division of the numbers of hits into groups with one limit each that
/// gives the most hits. More hits never have a shorter limit: a page has at least the hits of the
/// pages that continue it, and they are evicted with it.
void ReuseTimes::choose() {
  Waiting waiting;
  for (std::size_t bucket = 0; bucket < kBuckets; ++bucket) waiting[bucket] = waiting_in(bucket);
  constexpr unsigned kDivisions = 1u << kMostHits;  // bit h: hits of h and of h + 1 are divided
  Limits best;
  std::array<std::size_t, kMostHits + 1> best_group{};
  for (unsigned division = 0; division < kDivisions; ++division) {
    std::array<Curve, kKinds> curves;
    std::array<std::size_t, kMostHits + 1> group{};
    std::size_t groups = 1;  // 0: of the ends
    for (int first = 0, hits = 0; hits <= kMostHits; ++hits) {
      group[static_cast<std::size_t>(hits)] = groups;
      if (hits < kMostHits && (division >> hits & 1) == 0) continue;
      curves[groups++] = curve(waiting, first, hits);
      first = hits + 1;
    }
    curves[0] = curve(waiting, kEnd, kEnd);
    const Limits limits = fill(std::span(curves).first(groups));
    const auto of_hits = std::span(limits.of_group).subspan(1, groups - 1);
    if (limits.hits > best.hits + best.hits / kFiner && std::ranges::is_sorted(of_hits)) {
      best = limits;
      best_group = group;
    }
  }
  const auto credit = [&](std::size_t group) {
    const auto longer = static_cast<std::int64_t>(best.of_group[group] - best.of_group[1]);
    return longer * static_cast<std::int64_t>(tick_) / 256;
  };
  for (std::size_t kind = 0; kind < kKinds; ++kind) {
    std::int64_t& now = credits_[kind];
    now = ((kPace - 1) * now + credit(kind == kEnd ? 0 : best_group[kind])) / kPace;
  }
}

TrialCache::Credits ReuseTimes::credits_in_cells(bool is_patient) const {
  TrialCache::Credits credits{};
  for (std::size_t kind = 0; kind < kKinds; ++kind)
    credits[kind] = credit(static_cast<int>(kind), is_patient) / static_cast<std::int64_t>(cell_);
  return credits;
}

void ReuseTimes::next_cell() {
  if (now_ % (kInterval * tick_) == 0) learn();
  next_ += cell_;
  const OpenWaits::Counts oldest = waits_.advance();
  for (std::size_t kind = 0; kind < kKinds; ++kind) outlasted_[kind] += oldest[kind];
  for (Trial* trial : {&learned_, &patient_}) trial->cache.forget(waits_.first(), oldest);
  compare();
}

/// Brings the trials up to date, and takes the credits of the better one.
void ReuseTimes::compare() {
  learned_.cache.shrink(waits_, pages_, credits_in_cells(false));
  patient_.cache.shrink(waits_, pages_, credits_in_cells(true));
  is_patient_ = patient_.hits > learned_.hits;
  if (now_ % (kTrialMemory * kTicks * tick_) == 0)
    for (Trial* trial : {&learned_, &patient_}) trial->hits /= 2;
}

void ReuseTimes::learn() {
  counted_ += kInterval * tick_;
  if (now_ >= kFirst * pages_) choose();
  if (counted_ >= kMemory * pages_) forget_half();
}

void ReuseTimes::forget_half() {
  counted_ /= 2;
  const auto halve = [](Counts& counts) {
    for (std::uint64_t& count : counts) count /= 2;
  };
  std::ranges::for_each(ended_, halve);
  halve(started_);
  halve(outlasted_);
}

}  // namespace kvmesh
