#include "launch/replay/allocator_only.hpp"

#include "launch/replay/cpu_time.hpp"

namespace kvmesh::replay {

SequenceId AllocatorOnly::begin(const PrefixKey& key) {
  return timed(seconds_, [&] { return allocator_.create_with_prefix(key); });
}

void AllocatorOnly::append(std::span<const Growth> batch) {
  requests_.clear();
  for (const Growth& growth : batch) requests_.push_back({growth.sequence, growth.count});
  timed(seconds_, [&] { allocator_.append(requests_); });
}

void AllocatorOnly::publish(SequenceId sequence, const PrefixKey& key) {
  timed(seconds_, [&] { allocator_.publish(sequence, key); });
}

void AllocatorOnly::erase(SequenceId sequence) {
  timed(seconds_, [&] { allocator_.erase(sequence); });
}

}  // namespace kvmesh::replay
