#include "runtime/tiers/job_queue.hpp"

#include <utility>

namespace kvmesh {

JobQueue::JobQueue(std::function<void()> begin)
    : thread_([this, begin = std::move(begin)] { run(begin); }) {}

JobQueue::~JobQueue() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::shared_future<bool> JobQueue::submit(Job job, bool urgent) {
  Entry entry{std::move(job), {}};
  std::shared_future<bool> result = entry.result.get_future().share();
  {
    const std::lock_guard lock(mutex_);
    (urgent ? urgent_ : others_).push_back(std::move(entry));
  }
  changed_.notify_all();
  return result;
}

bool JobQueue::wait_all(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  const bool done = changed_.wait_for(
      lock, most, [this] { return urgent_.empty() && others_.empty() && !is_running_; });
  if (error_) std::rethrow_exception(error_);
  return done;
}

void JobQueue::wait_all() {
  while (!wait_all(std::chrono::hours(1))) {
  }
}

void JobQueue::remember_error() {
  const std::lock_guard lock(mutex_);
  if (!error_) error_ = std::current_exception();
}

bool JobQueue::next(Entry& entry) {
  std::unique_lock lock(mutex_);
  is_running_ = false;
  changed_.notify_all();
  changed_.wait(lock, [this] { return ends_ || !urgent_.empty() || !others_.empty(); });
  std::deque<Entry>& queue = urgent_.empty() ? others_ : urgent_;
  if (queue.empty()) return false;
  entry = std::move(queue.front());
  queue.pop_front();
  is_running_ = true;
  return true;
}

void JobQueue::run(const std::function<void()>& begin) {
  try {
    if (begin) begin();
  } catch (...) {
    remember_error();
  }
  for (Entry entry; next(entry);) {
    bool succeeded = false;
    try {
      succeeded = entry.job();
    } catch (...) {
      remember_error();
    }
    entry.job = {};
    entry.result.set_value(succeeded);
  }
}

}  // namespace kvmesh
