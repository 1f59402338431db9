// Keeps a failure of one rank while the other ranks still wait for that rank.
#pragma once

#include <exception>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// Runs steps and keeps the first failure, so that this rank still takes part in the steps that
/// other ranks wait for.
class Attempt {
 public:
  /// Runs a step of this rank alone; does nothing after a failure.
  template <class Step>
  void operator()(const Step& step) {
    if (failure_) return;
    try {
      step();
    } catch (...) {
      keep();
    }
  }
  /// The same for a step that all ranks refuse alike. @throws InvalidArgument, Unsupported.
  template <class Step>
  void unless_refused(const Step& step) {
    if (failure_) return;
    try {
      step();
    } catch (const InvalidArgument&) {
      throw;
    } catch (const Unsupported&) {
      throw;
    } catch (...) {
      keep();
    }
  }
  /// Runs a step that is needed even after a failure.
  template <class Step>
  void always(const Step& step) {
    try {
      step();
    } catch (...) {
      keep();
    }
  }
  /// Runs a step in which other ranks take part, even after a failure. @throws Timeout, PeerLost:
  /// after these the ranks cannot communicate.
  template <class Step>
  void together(const Step& step) {
    try {
      step();
    } catch (const Timeout&) {
      throw;
    } catch (const PeerLost&) {
      throw;
    } catch (...) {
      keep();
    }
  }
  bool failed() const { return failure_ != nullptr; }
  const std::exception_ptr& failure() const { return failure_; }
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void keep() {
    if (!failure_) failure_ = std::current_exception();
  }

  std::exception_ptr failure_;
};

}  // namespace kvmesh
