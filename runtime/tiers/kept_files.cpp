#include "runtime/tiers/kept_files.hpp"

namespace kvmesh {

void KeptFiles::add(const PageHash& hash, std::int64_t bytes) {
  forget(hash);
  places_[hash] = by_use_.insert(by_use_.end(), {hash, bytes});
  bytes_ += bytes;
}

bool KeptFiles::used(const PageHash& hash) {
  const auto place = places_.find(hash);
  if (place == places_.end()) return false;
  by_use_.splice(by_use_.end(), by_use_, place->second);
  return true;
}

void KeptFiles::forget(const PageHash& hash) {
  const auto place = places_.find(hash);
  if (place == places_.end()) return;
  bytes_ -= place->second->bytes;
  by_use_.erase(place->second);
  places_.erase(place);
}

std::optional<PageHash> KeptFiles::excess() const {
  if (bytes_ <= most_bytes_ || by_use_.empty()) return std::nullopt;
  return by_use_.front().hash;
}

}  // namespace kvmesh
