// One thread at a time on a mesh, and none in a child of fork().
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace kvmesh::python {

/// Lets one thread at a time use a mesh and all that is made on it: Python's own lock is released
/// while a call waits or computes. A child of fork() has no thread of the mesh and shares the
/// connections of its parent, so it may not use what was made before.
class Gate {
 public:
  Gate();
  /// True in a child of fork() where the gate was made before.
  bool is_inherited() const;
  /// Waits for a thread that ends objects here.
  /// @throws InvalidArgument if another thread is inside for a call, or if the gate is inherited.
  void check();
  /// As check, and refuses other threads until `leave`. The thread that is inside may enter again.
  void enter();
  /// As enter, but waits until the other thread has left. REQUIRES: Python's lock is not held.
  void wait_and_enter();
  /// Also ends the objects that `end` was called with meanwhile.
  void leave();
  /// Ends an object: now, or, if another thread is inside, when that thread leaves. In a child of
  /// fork() never, since the parent uses its connections.
  ///
  /// The end of an object may wait for peers or for the device, so other threads of Python run
  /// meanwhile. They did not ask for it, so their calls wait instead of being refused.
  void end(std::shared_ptr<void> object);

 private:
  using Objects = std::vector<std::shared_ptr<void>>;

  bool other_is_inside() const { return depth_ > 0 && inside_ != std::this_thread::get_id(); }
  bool other_is_ending() const { return other_is_inside() && is_ending_; }
  void refuse_child() const;
  void refuse_other() const;
  void go_inside();
  /// Locks, when no other thread is ending objects.
  std::unique_lock<std::mutex> locked();
  void end_and_leave(Objects objects);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::thread::id inside_;  // if depth_ > 0
  int depth_ = 0;           // how often that thread has entered
  bool is_ending_ = false;  // that thread is ending objects
  Objects ended_;
  int forks_;  // before this gate
};

/// A thread's time inside of a gate, which must exist as long.
class Turn {
 public:
  explicit Turn(Gate& gate) : gate_(gate) { gate_.enter(); }
  ~Turn() { gate_.leave(); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Gate& gate_;
};

}  // namespace kvmesh::python
