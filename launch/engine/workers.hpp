// The threads of the linear layers.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace kvmesh::engine {

/// A fixed set of threads that share the items of one loop at a time. The caller works too, so
/// Workers(1) starts no thread. For one caller at a time.
class Workers {
 public:
  /// @throws InvalidArgument unless `threads` >= 1.
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  /// Calls body(begin, end) for disjoint ranges that cover [0, items), each at most `grain` long,
  /// and returns when all are done. `body` must not throw.
  void for_ranges(std::int64_t items, std::int64_t grain,
                  const std::function<void(std::int64_t, std::int64_t)>& body);

 private:
  void help();
  void take_ranges();

  // One loop. The caller fills these in, raises `round_` and works; helpers wake, work, and count
  // themselves out of `busy_`. Nothing here changes before `busy_` is 0 again.
  const std::function<void(std::int64_t, std::int64_t)>* body_ = nullptr;
  std::int64_t items_ = 0;
  std::int64_t grain_ = 1;
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<std::uint32_t> round_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> helpers_;
};

}  // namespace kvmesh::engine
