#include "python/src/gate.hpp"

#include <pthread.h>

#include <atomic>
#include <utility>

#include "kvmesh/error.hpp"

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

void Gate::check() {
  refuse_child();
  const std::lock_guard lock(mutex_);
  refuse_other();
}

void Gate::enter() {
  refuse_child();
  const std::lock_guard lock(mutex_);
  refuse_other();
  inside_ = std::this_thread::get_id();
  ++depth_;
}

void Gate::wait_and_enter() {
  refuse_child();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !other_is_inside(); });
  inside_ = std::this_thread::get_id();
  ++depth_;
}

void Gate::leave() {
  std::vector<std::shared_ptr<void>> ended;
  {
    const std::lock_guard lock(mutex_);
    if (--depth_ > 0) return;
    ended.swap(ended_);
  }
  changed_.notify_all();
}

void Gate::end(std::shared_ptr<void> object) {
  if (is_inherited()) {
    static_cast<void>(new std::shared_ptr<void>(std::move(object)));  // stays
    return;
  }
  const std::lock_guard lock(mutex_);
  if (other_is_inside()) ended_.push_back(std::move(object));
}

}  // namespace kvmesh::python
