#include "kvmesh/thread_pool.hpp"

#include <algorithm>
#include <atomic>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <exception>
#include <latch>
#include <mutex>

#include "core/check.hpp"

namespace kvmesh {

struct ThreadPool::Workers {
  explicit Workers(int threads) : pool(static_cast<std::size_t>(threads)) {}
  boost::asio::thread_pool pool;
};

namespace {

constexpr int kMostThreads = 1024;

int checked(int threads) {
  require(threads >= 1 && threads <= kMostThreads, "a pool of {} threads, it may have 1 to {}",
          threads, kMostThreads);
  return threads;
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(checked(threads)),
      workers_(threads > 1 ? std::make_unique<Workers>(threads - 1) : nullptr) {}

ThreadPool::~ThreadPool() = default;
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&&) noexcept = default;

void ThreadPool::for_each(std::int64_t items, const std::function<void(std::int64_t, int)>& body) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&](int thread) {
    try {
      for (std::int64_t i = next++; i < items; i = next++) body(i, thread);
    } catch (...) {
      next = items;  // the others stop after their current item
      std::scoped_lock lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  const int helpers = static_cast<int>(std::min<std::int64_t>(threads_, items)) - 1;
  std::latch done(std::max(helpers, 0));
  for (int helper = 1; helper <= helpers; ++helper) {
    boost::asio::post(workers_->pool, [&, helper] {
      work(helper);
      done.count_down();
    });
  }
  work(0);
  done.wait();
  if (error) std::rethrow_exception(error);
}

}  // namespace kvmesh
