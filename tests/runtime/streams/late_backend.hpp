// Lets the records of a cache on the CPU pass through memory, by moves that are made late.
#pragma once

#include <memory>

#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/cache/late_stream.hpp"

namespace kvmesh::test {

/// Has a LateStream for page moves.
class LateBackend final : public OtherBackend {
 public:
  using OtherBackend::OtherBackend;
  std::unique_ptr<MoveStream> make_move_stream() override {
    auto made = std::make_unique<LateStream>([polls = polls_] { ++*polls; });
    stream_ = made.get();
    ++streams_;
    return made;
  }
  LateStream& stream() { return *stream_; }
  bool has_stream() const { return stream_ != nullptr; }
  int streams() const { return streams_; }
  /// Moves and polls of its streams so far; it may outlive them.
  std::shared_ptr<const int> polls() const { return polls_; }

 private:
  std::shared_ptr<int> polls_ = std::make_shared<int>(0);
  LateStream* stream_ = nullptr;
  int streams_ = 0;
};

/// Lets records pass through memory for batches of this many bytes.
inline LateBackend& stage(KvCache& cache, std::size_t batch_bytes) {
  auto& state = inside(cache);
  auto late = std::make_unique<LateBackend>(std::move(state.groups[0].backend));
  LateBackend& backend = *late;
  state.groups[0].backend = std::move(late);
  state.staging.batch_bytes = batch_bytes;
  return backend;
}
inline void stop_staging(KvCache& cache) {
  inside(cache).staging = {};
  inside(cache).groups[0].backend = make_backend(cache.mesh(), inside(cache).groups[0].allocator);
}

}  // namespace kvmesh::test
