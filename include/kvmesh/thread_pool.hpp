// The threads of one rank.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kvmesh/api.h"

namespace KVMESH_API kvmesh {

/// A fixed set of threads that share the items of one loop at a time. The calling thread works too,
/// so a pool of one starts no thread. Idle threads poll for work for about 50 us, then sleep. Not
/// thread-safe.
class ThreadPool {
 public:
  /// @throws InvalidArgument unless 1 <= threads <= 1024; OutOfThreads if the system starts fewer
  /// threads: the threads that were started are then stopped.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(ThreadPool&&) noexcept;
  ThreadPool& operator=(ThreadPool&&) noexcept;

  int threads() const { return threads_; }

  /// Calls `body(item, thread)` once for each item in [0, items), in no fixed order, and returns
  /// when all calls are done. `thread` < threads() differs between concurrent calls. The first
  /// exception is rethrown after all threads have stopped.
  void for_each(std::int64_t items, const std::function<void(std::int64_t, int)>& body);

 private:
  struct State;
  int threads_;
  std::unique_ptr<State> state_;  // null for one thread
};

}  // namespace kvmesh
