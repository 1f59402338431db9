#include "launch/replay/attend.hpp"

#include <algorithm>

#include "launch/replay/attending_cache.hpp"

namespace kvmesh::replay {
namespace {

void add(TierStatistics& sum, const TierStatistics& more) {
  const auto add_all = [](auto& to, const auto& from, auto... numbers) {
    ((to.*numbers += from.*numbers), ...);
  };
  using C = TierCounts;
  using F = FileFaults;
  for (const auto tier : {&TierStatistics::host, &TierStatistics::file})
    add_all(sum.*tier, more.*tier, &C::pages, &C::stores, &C::loads, &C::drops, &C::removed);
  add_all(sum.faults, more.faults, &F::corrupt, &F::truncated, &F::foreign, &F::full, &F::denied,
          &F::io);
  sum.pages_back = more.pages_back;  // equal on all ranks
}

/// A rank's part of the counts: all but what rank 0 alone counts.
AttendCounts counts_of(const AttendingCache& cache) {
  const verify::Findings& findings = cache.findings();
  return {.rows = findings.rows(),
          .wrong = findings.failed(),
          .max_error = findings.max_error(),
          .first_wrong = findings.good() ? std::string() : findings.messages().front(),
          .tiers = cache.tiers()};
}

void add(AttendCounts& sum, const AttendCounts& more) {
  sum.rows += more.rows;
  sum.wrong += more.wrong;
  sum.max_error = std::max(sum.max_error, more.max_error);
  if (sum.first_wrong.empty()) sum.first_wrong = more.first_wrong;
  add(sum.tiers, more.tiers);
}

}  // namespace

AttendCounts attend(const Trace& trace, const ReplayOptions& options, const AttendOptions& how,
                    const std::function<void(std::size_t)>& progress) {
  check(how.shape);
  const verify::Tolerances tolerances =
      verify::arithmetic_tolerances({.kind = how.device}, how.shape.dtype);
  const Contents contents(how.shape, query_scale(tolerances, how.shape.dim));
  AttendCounts all;
  std::vector<AttendCounts> of_ranks(static_cast<std::size_t>(options.ranks));
  const auto serve = [&](Mesh& mesh) {
    const bool is_first = mesh.rank().value == 0;
    AttendingCache cache(mesh, trace, options, how.shape, contents, how.every);
    Replay replay(trace, options, cache);
    const ReplayCounts served =
        replay.run([&](std::size_t done) { is_first ? progress(done) : void(); });
    cache.check_replicas();
    of_ranks[static_cast<std::size_t>(mesh.rank().value)] = counts_of(cache);
    if (!is_first) return;
    all.batches = cache.checked_batches();
    all.seconds = cache.seconds();
    all.served = served;
  };
  const DeviceChoice device =
      how.device == DeviceKind::kCpu ? DeviceChoice::kCpu : DeviceChoice::kCuda;
  run_on_threads(options.ranks, serve, {.threads = 1, .device = device, .deadline = how.deadline});
  for (const AttendCounts& mine : of_ranks) add(all, mine);
  return all;
}

}  // namespace kvmesh::replay
