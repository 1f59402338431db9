// The collectives. Each is one `exchange`: every rank sends directly to every rank that needs its
// bytes. On one host that is faster than rings and trees, where each step waits for a wake-up.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/check.hpp"
#include "kvmesh/communicator.hpp"

namespace kvmesh {
namespace {

/// One entry per peer. Allocating them costs far less than a message, since a group has few ranks.
struct Entries {
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
};

/// Folds all ranks' values in rank order, so that all ranks get the same bits.
template <class Fold>
void all_reduce(Communicator& comm, std::span<double> values, std::string_view operation,
                const Fold& fold) {
  const std::vector<double> all =
      all_gather_values(comm, std::span<const double>(values), operation);
  for (std::size_t i = 0; i < values.size(); ++i) {
    double result = all[i];
    for (std::size_t at = i + values.size(); at < all.size(); at += values.size()) {
      result = fold(result, all[at]);
    }
    values[i] = result;
  }
}

}  // namespace

void all_gather_v(Communicator& comm, std::span<const std::byte> mine,
                  std::span<const std::size_t> counts, std::span<std::byte> all,
                  std::string_view operation) {
  const auto me = static_cast<std::size_t>(comm.rank().value);
  require(counts.size() == static_cast<std::size_t>(comm.size()), "{}: {} counts for {} ranks",
          operation, counts.size(), comm.size());
  require(counts[me] == mine.size(), "{}: rank {} gives {} bytes, its count is {}", operation, me,
          mine.size(), counts[me]);
  const std::size_t total = std::accumulate(counts.begin(), counts.end(), std::size_t{0});
  require(all.size() == total, "{}: {} bytes of room for {} bytes", operation, all.size(), total);

  Entries entries;
  for (std::size_t r = 0, at = 0; r < counts.size(); at += counts[r++]) {
    const Rank peer{static_cast<std::int32_t>(r)};
    entries.outgoing.push_back({peer, mine});
    entries.incoming.push_back({peer, all.subspan(at, counts[r])});
  }
  comm.exchange(entries.outgoing, entries.incoming, operation);
}

void all_gather(Communicator& comm, std::span<const std::byte> mine, std::span<std::byte> all,
                std::string_view operation) {
  const std::vector<std::size_t> counts(static_cast<std::size_t>(comm.size()), mine.size());
  all_gather_v(comm, mine, counts, all, operation);
}

void barrier(Communicator& comm, std::string_view operation) {
  const std::byte here{};
  std::vector<std::byte> all(static_cast<std::size_t>(comm.size()));
  all_gather(comm, std::span(&here, 1), all, operation);
}

void broadcast(Communicator& comm, Rank root, std::span<std::byte> bytes,
               std::string_view operation) {
  require(root.value >= 0 && root.value < comm.size(), "{}: root {} of {} ranks", operation,
          root.value, comm.size());
  Entries entries;
  if (comm.rank() == root) {
    for (int r = 0; r < comm.size(); ++r) {
      if (r != root.value) entries.outgoing.push_back({Rank{r}, bytes});
    }
  } else {
    entries.incoming.push_back({root, bytes});
  }
  comm.exchange(entries.outgoing, entries.incoming, operation);
}

void all_reduce_sum(Communicator& comm, std::span<double> values, std::string_view operation) {
  all_reduce(comm, values, operation, [](double a, double b) { return a + b; });
}

void all_reduce_max(Communicator& comm, std::span<double> values, std::string_view operation) {
  all_reduce(comm, values, operation, [](double a, double b) { return std::max(a, b); });
}

}  // namespace kvmesh
