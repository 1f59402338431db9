// Checks that the ranks' allocators are equal; if not, finds the first operation that differs.
#include "runtime/mesh/replica_check.hpp"

#include <algorithm>
#include <array>

#include "core/check.hpp"

namespace kvmesh {
namespace {

// The part of its journal that a rank sends: the states after the operations [operations - kept,
// operations).
struct History {
  std::uint64_t operations = 0;
  std::uint64_t kept = 0;
  std::array<std::uint64_t, 256> digests{};
};

History history_of(const std::vector<JournalEntry>& journal) {
  History history;
  if (journal.empty()) return history;
  history.operations = journal.back().number + 1;
  history.kept = std::min(journal.size(), history.digests.size());
  for (std::size_t i = 0; i < history.kept; ++i) {
    history.digests[i] = journal[journal.size() - history.kept + i].digest;
  }
  return history;
}

// Returns whether the other rank's operation of this number left the same state. Returns true if it
// is too old to be known.
bool agrees(const History& other, const JournalEntry& entry) {
  const std::uint64_t first = other.operations - other.kept;
  if (entry.number >= other.operations) return false;
  return entry.number < first || other.digests[entry.number - first] == entry.digest;
}

std::string difference(const std::vector<JournalEntry>& journal,
                       const std::vector<History>& histories, std::size_t me) {
  for (const JournalEntry& entry : journal) {
    const auto other = std::ranges::find_if_not(
        histories, [&](const History& history) { return agrees(history, entry); });
    if (other == histories.end()) continue;
    // Nothing older is known here; before operation 0 there are the options.
    const bool earliest = entry.number == journal.front().number;
    return fmt::format(
        "the allocators of ranks {} and {} parted at {}operation {} ({} of sequence {} here)", me,
        other - histories.begin(), earliest ? "or before " : "", entry.number, entry.operation,
        entry.sequence);
  }
  const auto longest = std::ranges::max_element(histories, {}, &History::operations);
  if (longest->operations > histories[me].operations) {
    return fmt::format("rank {} applied operation {} to its allocator, which rank {} did not",
                       longest - histories.begin(), histories[me].operations, me);
  }
  return fmt::format("the allocator of rank {} was made with other options than another rank's",
                     me);
}

}  // namespace

void check_replicas(const PageAllocator& allocator, Communicator& world) {
  // Normally equal: 8 bytes per rank prove it, and no journal is sent.
  const std::uint64_t digest = allocator.digest();
  const std::vector<std::uint64_t> digests = all_gather_value(world, digest, "check_replicas");
  if (std::ranges::count(digests, digest) == world.size()) return;
  const std::vector<JournalEntry> journal = allocator.journal();
  const std::vector<History> all = all_gather_value(world, history_of(journal), "check_replicas");
  throw DigestMismatch(
      fmt::format("{}: every rank must apply the same operations in the same order",
                  difference(journal, all, static_cast<std::size_t>(world.rank().value))));
}

}  // namespace kvmesh
