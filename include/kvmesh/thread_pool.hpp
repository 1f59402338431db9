// The threads of one rank's CPU backend.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace kvmesh {

/// A fixed set of threads that share the items of one loop at a time. The caller works too, so a
/// pool of one starts no thread. Those without work look for it for some 50 us, then sleep. One
/// loop at a time; not thread-safe.
class ThreadPool {
 public:
  /// @throws InvalidArgument unless 1 <= threads <= 1024; OutOfThreads, at once, if the system
  /// starts fewer: then none stays.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(ThreadPool&&) noexcept;
  ThreadPool& operator=(ThreadPool&&) noexcept;

  int threads() const { return threads_; }

  /// Calls `body(item, thread)` once for each item in [0, items), in no fixed order, and returns
  /// when all are done; `thread` < threads() tells concurrent calls apart. The first exception is
  /// rethrown after all threads have stopped.
  void for_each(std::int64_t items, const std::function<void(std::int64_t, int)>& body);

 private:
  struct Workers;
  int threads_;
  std::unique_ptr<Workers> workers_;
};

}  // namespace kvmesh
