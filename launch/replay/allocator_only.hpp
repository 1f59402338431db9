// A replay of metadata alone: the allocator that every rank would hold a copy of.
#pragma once

#include "launch/replay/replay.hpp"

namespace kvmesh::replay {

/// Measures the CPU time that the allocator takes.
class AllocatorOnly final : public Served {
 public:
  explicit AllocatorOnly(const AllocatorOptions& options) : allocator_(options) {}

  SequenceId begin(const PrefixKey& key) override;
  void append(std::span<const Growth> batch) override;
  void publish(SequenceId sequence, const PrefixKey& key) override;
  void erase(SequenceId sequence) override;
  const PageAllocator& allocator() const override { return allocator_; }

  double seconds() const { return seconds_; }

 private:
  PageAllocator allocator_;
  std::vector<AppendRequest> requests_;
  double seconds_ = 0;
};

}  // namespace kvmesh::replay
