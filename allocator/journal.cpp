#include "allocator/journal.hpp"

#include <algorithm>

namespace kvmesh {

std::vector<JournalEntry> Journal::entries() const {
  const std::uint64_t count = std::min<std::uint64_t>(operations_, kEntries);
  std::vector<JournalEntry> result;
  result.reserve(count);
  for (std::uint64_t number = operations_ - count; number < operations_; ++number)
    result.push_back(entries_[number % kEntries]);
  return result;
}

}  // namespace kvmesh
