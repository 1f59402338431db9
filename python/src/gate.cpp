#include "python/src/gate.hpp"

#include <pthread.h>

#include <atomic>
#include <utility>

#include "kvmesh/error.hpp"
#include "python/src/lock.hpp"

namespace kvmesh::python {
namespace {

std::atomic<int>& forks() {
  static std::atomic<int> count{0};
  return count;
}

/// Returns how many calls of fork() lie between this process and the one that called it first.
int forks_now() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks(); });
  static_cast<void>(registered);
  return forks().load();
}

}  // namespace

Gate::Gate() : forks_(forks_now()) {}

bool Gate::is_inherited() const { return forks().load() != forks_; }

void Gate::refuse_child() const {
  if (!is_inherited()) return;
  throw InvalidArgument(
      "this object was made before fork(), and only the parent process can use it: make a mesh in "
      "the child, or start the child with multiprocessing's 'spawn'");
}

void Gate::refuse_other() const {
  if (!other_is_inside()) return;
  throw InvalidArgument(
      "another thread is in a call of this mesh or of what was made on it: one thread at a time "
      "may use a mesh, its caches and their plans");
}

void Gate::go_inside() {
  inside_ = std::this_thread::get_id();
  ++depth_;
}

std::unique_lock<std::mutex> Gate::locked() {
  for (;;) {
    refuse_child();
    {
      std::unique_lock lock(mutex_);
      if (!other_is_ending()) return lock;
    }
    // Python's lock is taken after the mutex is free, and another thread may be inside then.
    const WithoutPythonsLock others_run;
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !other_is_ending(); });
  }
}

void Gate::check() {
  const auto lock = locked();
  refuse_other();
}

void Gate::enter() {
  const auto lock = locked();
  refuse_other();
  go_inside();
}

void Gate::wait_and_enter() {
  refuse_child();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !other_is_inside(); });
  go_inside();
}

void Gate::leave() {
  Objects ended;
  {
    const std::lock_guard lock(mutex_);
    if (depth_ == 1) ended.swap(ended_);
    is_ending_ = !ended.empty();
    if (!is_ending_) --depth_;
  }
  if (ended.empty()) return changed_.notify_all();
  end_and_leave(std::move(ended));
}

void Gate::end(std::shared_ptr<void> object) {
  if (is_inherited()) {
    static_cast<void>(new std::shared_ptr<void>(std::move(object)));  // stays
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    if (other_is_inside()) return ended_.push_back(std::move(object));
    is_ending_ = true;
    go_inside();
  }
  Objects objects;
  objects.push_back(std::move(object));
  end_and_leave(std::move(objects));
}

void Gate::end_and_leave(Objects objects) {
  const WithoutPythonsLock others_run;
  objects.clear();
  leave();
}

}  // namespace kvmesh::python
