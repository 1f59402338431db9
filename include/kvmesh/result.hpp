// The value of an operation, or the typed reason why there is none.
#pragma once

#include <utility>
#include <variant>

#include "kvmesh/api.h"
#include "kvmesh/error.hpp"

namespace KVMESH_API kvmesh {

/// Returned by operations that can be refused in normal service. `Reason` is the error that the
/// throwing form of the operation throws, so a caller that wants to know more after a refusal does
/// not call again.
template <class T, class Reason = OutOfPages>
class [[nodiscard]] Result {
 public:
  Result(T value) : content_(std::in_place_index<0>, std::move(value)) {}
  Result(Reason reason) : content_(std::in_place_index<1>, std::move(reason)) {}

  bool has_value() const { return content_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  /// REQUIRES: has_value().
  T& operator*() & { return *std::get_if<0>(&content_); }
  const T& operator*() const& { return *std::get_if<0>(&content_); }
  T&& operator*() && { return std::move(*std::get_if<0>(&content_)); }
  T* operator->() { return std::get_if<0>(&content_); }
  const T* operator->() const { return std::get_if<0>(&content_); }
  /// REQUIRES: !has_value().
  const Reason& reason() const { return *std::get_if<1>(&content_); }

  /// Returns the value. @throws Reason.
  T value() && {
    if (!has_value()) throw reason();
    return std::move(**this);
  }

 private:
  std::variant<T, Reason> content_;
};

/// A Result of an operation that returns nothing.
struct Done {};

}  // namespace kvmesh
