// A thread that does jobs one after another.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <mutex>
#include <thread>

namespace kvmesh {

/// Jobs run in the order of submission, urgent ones before the others. A job returns whether it
/// succeeded; one that throws has failed, and every later wait_all() throws the first such error.
class JobQueue {
 public:
  using Job = std::function<bool()>;

  /// `begin` runs first on the thread.
  explicit JobQueue(std::function<void()> begin = {});
  /// Ends after all jobs are done.
  ~JobQueue();
  JobQueue(const JobQueue&) = delete;
  JobQueue& operator=(const JobQueue&) = delete;

  /// Returns the job's future result.
  std::shared_future<bool> submit(Job job, bool urgent = false);
  /// Blocks until no job is left. Returns false if some are left after `most`.
  /// @throws the first error of a job.
  [[nodiscard]] bool wait_all(std::chrono::milliseconds most);
  void wait_all();

 private:
  struct Entry {
    Job job;
    std::promise<bool> result;
  };
  void run(const std::function<void()>& begin);
  bool next(Entry& entry);
  void remember_error();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> urgent_, others_;
  bool is_running_ = false;
  bool ends_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace kvmesh
