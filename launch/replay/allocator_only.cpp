#include "launch/replay/allocator_only.hpp"

#include <ctime>

namespace kvmesh::replay {
namespace {

// Returns the CPU time of this thread: other work on the machine does not count.
double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

template <class Operation>
auto AllocatorOnly::timed(const Operation& operation) {
  struct Timer {
    ~Timer() { seconds += cpu_seconds() - start; }
    double& seconds;
    double start = cpu_seconds();
  };
  const Timer timer{seconds_};
  return operation();
}

SequenceId AllocatorOnly::begin(const PrefixKey& key) {
  return timed([&] { return allocator_.create_with_prefix(key); });
}

void AllocatorOnly::append(std::span<const Growth> batch) {
  requests_.clear();
  for (const Growth& growth : batch) requests_.push_back({growth.sequence, growth.count});
  timed([&] { allocator_.append(requests_); });
}

void AllocatorOnly::publish(SequenceId sequence, const PrefixKey& key) {
  timed([&] { allocator_.publish(sequence, key); });
}

void AllocatorOnly::erase(SequenceId sequence) {
  timed([&] { allocator_.erase(sequence); });
}

}  // namespace kvmesh::replay
