// Objects of Python that can be closed before they are collected.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <optional>
#include <utility>

#include "kvmesh/error.hpp"
#include "python/src/gate.hpp"
#include "python/src/lock.hpp"

namespace kvmesh::python {

/// A value that `close`, the end of a `with` block, or else Python's collector ends. It is a mesh,
/// or shares the gate of the mesh that it was made on.
template <class T>
class Closable {
 public:
  explicit Closable(T value, std::shared_ptr<Gate> gate = std::make_shared<Gate>())
      : value_(std::move(value)), gate_(std::move(gate)) {}
  Closable(Closable&&) = default;
  Closable& operator=(Closable&&) = delete;
  ~Closable() {
    if (gate_ && value_) gate_->end(taken());
  }

  /// The value for a call: no other thread enters the gate until this ends.
  class Use {
   public:
    explicit Use(Closable& of) : turn_(*of.gate_), value_(of.peek()) {}
    T& operator*() const { return value_; }
    T* operator->() const { return &value_; }

   private:
    Turn turn_;
    T& value_;
  };
  Use use() { return Use(*this); }
  /// The value for a call that neither releases Python's lock nor runs Python.
  T& get() {
    gate_->check();
    return peek();
  }
  /// As get, in any thread at any time: for what never changes.
  T& peek() {
    if (!value_) throw InvalidArgument("this object has been closed");
    return *value_;
  }
  const std::shared_ptr<Gate>& gate() const { return gate_; }
  bool is_closed() const { return !value_.has_value(); }

  /// Waits for the thread that is inside, and may wait for peers; other threads of Python run
  /// meanwhile.
  void close() {
    namespace nb = nanobind;
    if (!value_) return;
    if (gate_->is_inherited()) return gate_->end(taken());
    {
      const WithoutPythonsLock others_run;
      gate_->wait_and_enter();
    }
    std::shared_ptr<void> ending = value_ ? taken() : nullptr;  // another thread may have closed it
    {
      const WithoutPythonsLock others_run;
      ending.reset();
    }
    gate_->leave();
  }

 private:
  std::shared_ptr<void> taken() {
    auto value = std::make_shared<T>(std::move(*value_));
    value_.reset();
    return value;
  }

  std::optional<T> value_;
  std::shared_ptr<Gate> gate_;  // null: moved from
};

/// Adds close, __enter__ and __exit__ to a class that is a Closable, or has its close and
/// is_closed.
template <class T>
void make_closable(nanobind::class_<T>& type) {
  namespace nb = nanobind;
  type.def("close", &T::close,
           "Frees what it holds, after a call of another thread. Using it afterwards is an error.")
      .def_prop_ro("closed", &T::is_closed)
      .def("__enter__", [](nb::handle_t<T> self) { return self; })
      .def(
          "__exit__", [](T& self, const nb::args&) { self.close(); }, nb::arg("args"));
}

}  // namespace kvmesh::python
