// Do the ranks' allocators agree, and if not, since when?
#include <algorithm>
#include <array>

#include "core/check.hpp"
#include "runtime/cache_state.hpp"

namespace kvmesh {
namespace {

struct Stamp {
  std::uint64_t number = 0;  // 0: no entry
  std::uint64_t digest = 0;
};
constexpr std::size_t kStamps = 257;  // the journal, and the present state last
using Stamps = std::array<Stamp, kStamps>;

Stamps stamps_of(const std::vector<JournalEntry>& journal, std::uint64_t digest) {
  Stamps stamps{};
  const std::size_t kept = std::min(journal.size(), kStamps - 1);
  for (std::size_t i = 0; i < kept; ++i) {
    const JournalEntry& entry = journal[journal.size() - kept + i];
    stamps[i] = {entry.number, entry.digest};
  }
  stamps.back() = {journal.empty() ? 0 : journal.back().number, digest};
  return stamps;
}

// Did `stamps` see operation `entry` end in the same state? Nothing known: yes.
bool agrees(const Stamps& stamps, const JournalEntry& entry) {
  const auto same = std::ranges::find(stamps, entry.number, &Stamp::number);
  return same == stamps.end() ? entry.number < stamps.front().number : same->digest == entry.digest;
}

}  // namespace

void check_replicas(const PageAllocator& allocator, Communicator& world) {
  const std::vector<JournalEntry> journal = allocator.journal();
  const Stamps mine = stamps_of(journal, allocator.digest());
  // Equal in the normal case: 8 bytes a rank settle it, and the journals stay at home.
  std::vector<std::uint64_t> digests(static_cast<std::size_t>(world.size()));
  const std::uint64_t digest = allocator.digest();
  all_gather(world, std::as_bytes(std::span(&digest, 1)),
             std::as_writable_bytes(std::span(digests)), "check_replicas");
  if (std::ranges::count(digests, digest) == world.size()) return;
  std::vector<Stamps> all(static_cast<std::size_t>(world.size()));
  all_gather(world, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)),
             "check_replicas");
  for (const JournalEntry& entry : journal) {
    for (std::size_t rank = 0; rank < all.size(); ++rank) {
      if (agrees(all[rank], entry)) continue;
      throw DigestMismatch(fmt::format(
          "the allocators of ranks {} and {} parted at operation {} ({} of sequence {} here): "
          "every "
          "rank must apply the same operations in the same order",
          world.rank().value, rank, entry.number, entry.operation, entry.sequence.value));
    }
  }
  throw DigestMismatch(
      fmt::format("the allocator of rank {} differs from another rank's, and its last {} "
                  "operations do not show "
                  "where they parted: every rank must apply the same operations in the same order",
                  world.rank().value, journal.size()));
}

}  // namespace kvmesh
