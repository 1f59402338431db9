#include "kvmesh/error.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <numeric>

namespace kvmesh {
namespace {

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

std::vector<std::int32_t> values_of(const std::vector<Rank>& ranks) {
  std::vector<std::int32_t> values;
  for (Rank rank : ranks) values.push_back(rank.value);
  return values;
}

std::string names_of(const std::vector<Rank>& late) {
  if (late.empty()) return "its own device";
  return fmt::format("rank {}", fmt::join(values_of(late), ", "));
}

}  // namespace

UnknownSequence::UnknownSequence(SequenceId sequence)
    : UnknownSequence(sequence, sequence.space()) {}

UnknownSequence::UnknownSequence(SequenceId sequence, std::uint16_t space)
    : Error(sequence.space() == space
                ? fmt::format("sequence {} does not exist: it was never created or has been erased",
                              describe(sequence))
                : fmt::format("sequence {} belongs to another cache: ids here have space {}",
                              describe(sequence), space)),
      sequence_(sequence) {}

OutOfThreads::OutOfThreads(int asked, int started, const std::string& reason)
    : Error(fmt::format("asked for {} threads, the system started {}: {}", asked, started, reason)),
      asked_(asked),
      started_(started) {}

OutOfPages::OutOfPages(std::int64_t asked_pages, std::vector<std::int64_t> free_pages_per_rank)
    : Error(fmt::format("out of pages: asked for {}, free {} (per rank: {})", asked_pages,
                        sum(free_pages_per_rank), fmt::join(free_pages_per_rank, ", "))),
      asked_pages_(asked_pages),
      free_pages_(sum(free_pages_per_rank)),
      free_pages_per_rank_(std::move(free_pages_per_rank)) {}

OutOfMemory::OutOfMemory(Rank rank, std::int64_t asked_bytes, const std::string& reason)
    : Error(fmt::format("rank {} has no memory for pools of {} bytes: {}", rank.value, asked_bytes,
                        reason)),
      rank_(rank),
      asked_bytes_(asked_bytes) {}

Timeout::Timeout(Rank waiter, std::vector<Rank> late, std::string operation,
                 std::chrono::milliseconds deadline)
    : Error(fmt::format("rank {} waited {} ms in {} for {}", waiter.value, deadline.count(),
                        operation, names_of(late))),
      waiter_(waiter),
      late_(std::move(late)),
      operation_(std::move(operation)) {}

PeerLost::PeerLost(Rank waiter, Rank peer, std::string operation, const std::string& reason)
    : Error(fmt::format("rank {} lost rank {} in {}: {}", waiter.value, peer.value, operation,
                        reason)),
      waiter_(waiter),
      peer_(peer),
      operation_(std::move(operation)) {}

}  // namespace kvmesh
