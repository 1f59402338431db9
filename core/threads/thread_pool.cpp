#include "kvmesh/thread_pool.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>

#include "core/check.hpp"

namespace kvmesh {
namespace {

constexpr int kMostThreads = 1024;

// The next loop usually starts within some 10 us, and waking a sleeping thread takes longer than
// such a loop. After this time the pool counts as paused.
constexpr auto kSpin = std::chrono::microseconds(50);

// Waits until `word` differs from `old`. It yields the core while it polls, since ranks may
// outnumber the cores.
void wait_for_change(const std::atomic<std::uint32_t>& word, std::uint32_t old) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (word.load(std::memory_order_acquire) == old) {
    if (std::chrono::steady_clock::now() >= end) return word.wait(old, std::memory_order_acquire);
    sched_yield();
  }
}

// The items of one for_each, shared by the threads that work on it.
class Loop {
 public:
  Loop(std::int64_t items, const std::function<void(std::int64_t, int)>& body)
      : items_(items), body_(body) {}

  void work(int thread) {
    try {
      for (std::int64_t i = next_++; i < items_; i = next_++) body_(i, thread);
    } catch (...) {
      next_ = items_;  // the others stop after their current item
      std::scoped_lock lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const std::int64_t items_;
  const std::function<void(std::int64_t, int)>& body_;
  std::atomic<std::int64_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
};

int checked(int threads) {
  require(threads >= 1 && threads <= kMostThreads, "a pool of {} threads, it may have 1 to {}",
          threads, kMostThreads);
  return threads;
}

}  // namespace

struct ThreadPool::State {
  // A worker and its orders: `turn` grows by one when a new `loop` is ready for it.
  struct Worker {
    std::atomic<std::uint32_t> turn{0};
    Loop* loop = nullptr;  // null: exit
    std::thread thread;
  };

  explicit State(int count) {
    try {
      for (int i = 1; i <= count; ++i) {
        workers.emplace_back();
        workers.back().thread = std::thread([this, i, &me = workers.back()] { serve(i, me); });
      }
    } catch (const std::system_error& error) {
      workers.pop_back();
      end();
      throw OutOfThreads(count, static_cast<int>(workers.size()), error.what());
    }
  }
  ~State() { end(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void serve(int number, Worker& me) {
    for (std::uint32_t turn = 0;; ++turn) {
      wait_for_change(me.turn, turn);
      if (me.loop == nullptr) return;
      me.loop->work(number);
      if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) busy.notify_one();
    }
  }
  static void tell(Worker& worker, Loop* loop) {
    worker.loop = loop;
    worker.turn.fetch_add(1, std::memory_order_release);
    worker.turn.notify_one();
  }
  void end() {
    for (Worker& worker : workers) tell(worker, nullptr);
    for (Worker& worker : workers) worker.thread.join();
  }

  /// Runs the loop on the first `helpers` workers and the caller.
  void run(Loop& loop, int helpers) {
    busy.store(static_cast<std::uint32_t>(helpers), std::memory_order_relaxed);
    for (int i = 0; i < helpers; ++i) tell(workers[static_cast<std::size_t>(i)], &loop);
    loop.work(0);
    for (std::uint32_t left; (left = busy.load(std::memory_order_acquire)) != 0;) {
      wait_for_change(busy, left);
    }
  }

  std::atomic<std::uint32_t> busy{0};  // helpers that have not left the loop
  std::deque<Worker> workers;
};

ThreadPool::ThreadPool(int threads)
    : threads_(checked(threads)),
      state_(threads > 1 ? std::make_unique<State>(threads - 1) : nullptr) {}

ThreadPool::~ThreadPool() = default;
ThreadPool::ThreadPool(ThreadPool&&) noexcept = default;
ThreadPool& ThreadPool::operator=(ThreadPool&&) noexcept = default;

void ThreadPool::for_each(std::int64_t items, const std::function<void(std::int64_t, int)>& body) {
  require(body != nullptr, "a loop over {} items without a body", items);
  Loop loop(items, body);
  const int helpers = static_cast<int>(std::min<std::int64_t>(threads_, items)) - 1;
  if (helpers > 0) {
    state_->run(loop, helpers);
  } else {
    loop.work(0);
  }
  loop.rethrow();
}

}  // namespace kvmesh
