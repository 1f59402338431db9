// Python's lock, also at the end of the interpreter.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <nanobind/nanobind.h>
#include <unistd.h>

namespace kvmesh::python {

/// Runs `body`, which takes Python's lock. While the interpreter ends, Python (before 3.14) ends
/// every other thread that takes its lock, by pthread_exit. That unwinds the thread's stack, whose
/// destructors need the lock, or may not throw. Such a thread sleeps here instead, until the
/// process ends.
template <class Body>
auto asleep_at_exit(const Body& body) {
  try {
    return body();
  } catch (const abi::__forced_unwind&) {
    for (;;) pause();
  }
}

/// Calls a function that may be written in Python: other threads get Python's lock meanwhile, so
/// this one may be ended inside. `function` and `args` outlive the call, since their ends need the
/// lock.
template <class... Args>
nanobind::object call(nanobind::handle function, const Args&... args) {
  return asleep_at_exit([&] { return function(args...); });
}

/// Other threads of Python run while it exists, if this one has Python's lock. At the end of the
/// interpreter no other runs any more.
class WithoutPythonsLock {
 public:
  WithoutPythonsLock() {
    if (Py_IsInitialized() && PyGILState_Check()) state_ = PyEval_SaveThread();
  }
  ~WithoutPythonsLock() {
    if (state_ != nullptr) asleep_at_exit([this] { PyEval_RestoreThread(state_); });
  }
  WithoutPythonsLock(const WithoutPythonsLock&) = delete;
  WithoutPythonsLock& operator=(const WithoutPythonsLock&) = delete;

 private:
  PyThreadState* state_ = nullptr;
};

/// A thread that the library has started may use Python while it exists.
class WithPythonsLock {
 public:
  WithPythonsLock() : state_(asleep_at_exit([] { return PyGILState_Ensure(); })) {}
  ~WithPythonsLock() { PyGILState_Release(state_); }
  WithPythonsLock(const WithPythonsLock&) = delete;
  WithPythonsLock& operator=(const WithPythonsLock&) = delete;

 private:
  PyGILState_STATE state_;
};

}  // namespace kvmesh::python
