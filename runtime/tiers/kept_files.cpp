#include "runtime/tiers/kept_files.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

/// At most 8 MiB of ghosts, also where pages are small and files many.
constexpr std::uint64_t kMostGhosts = std::uint64_t{1} << 20;

PageSlot usual_files(std::int64_t most_bytes, std::int64_t file_bytes) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  return static_cast<PageSlot>(
      std::clamp<std::int64_t>(most_bytes / std::max<std::int64_t>(1, file_bytes), 1, kMost));
}

}  // namespace

KeptFiles::KeptFiles(Eviction policy, std::int64_t most_bytes, std::int64_t file_bytes)
    : most_bytes_(most_bytes),
      pages_(policy, usual_files(most_bytes, file_bytes), kMostGhosts),
      queues_(policy, usual_files(most_bytes, file_bytes)) {}

PageSlot KeptFiles::find(const PageHash& hash) const {
  const auto place = slots_.find(hash);
  return place == slots_.end() ? kNoSlot : place->second;
}

PageSlot KeptFiles::take_slot() {
  if (free_slots_.empty()) {
    files_.emplace_back();
    pages_.pages.emplace_back();
    return static_cast<PageSlot>(files_.size() - 1);
  }
  const PageSlot slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

void KeptFiles::add(const PageHash& hash, std::int64_t bytes) {
  PageSlot slot = find(hash);
  if (slot != kNoSlot) {
    queues_.taken(pages_, slot);
    bytes_ -= files_[slot].bytes;
  } else {
    slot = take_slot();
    slots_[hash] = slot;
    queues_.added(pages_, slot, hash, false);
  }
  files_[slot] = {hash, bytes};
  bytes_ += bytes;
  queues_.released(pages_, slot);
}

bool KeptFiles::used(const PageHash& hash) {
  const PageSlot slot = find(hash);
  if (slot == kNoSlot) return false;
  queues_.taken(pages_, slot);
  queues_.released(pages_, slot);
  return true;
}

bool KeptFiles::hit(const PageHash& hash) {
  const PageSlot slot = find(hash);
  if (slot == kNoSlot) return false;
  queues_.taken(pages_, slot);
  queues_.hit(pages_, slot);
  queues_.released(pages_, slot);
  return true;
}

void KeptFiles::forget(const PageHash& hash) {
  const PageSlot slot = find(hash);
  if (slot == kNoSlot) return;
  queues_.taken(pages_, slot);
  free(slot);
}

std::optional<PageHash> KeptFiles::excess() {
  if (bytes_ <= most_bytes_ || files() == 0) return std::nullopt;
  return files_[queues_.victim(pages_)].hash;
}

/// The policy keeps a ghost of the page, in case it comes again.
void KeptFiles::left(const PageHash& hash) {
  const PageSlot slot = find(hash);
  queues_.evicted(pages_, slot, hash);
  free(slot);
}

void KeptFiles::free(PageSlot slot) {
  bytes_ -= files_[slot].bytes;
  slots_.erase(files_[slot].hash);
  free_slots_.push_back(slot);
}

}  // namespace kvmesh
