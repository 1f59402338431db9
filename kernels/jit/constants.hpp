// The constants that a kernel is compiled for.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

#include "kvmesh/dtype.hpp"

namespace kvmesh::jit {

/// A list of named values for the head of a compiled source: each becomes a constexpr variable of
/// the namespace kvmesh. Typed, scoped and visible in error messages, unlike -D macros.
class Constants {
 public:
  Constants& set(std::string_view name, std::same_as<bool> auto value) {
    return add("bool", name, value ? "true" : "false");
  }
  Constants& set(std::string_view name, std::same_as<int> auto value) {
    return add_int(name, value);
  }
  /// @throws InvalidArgument unless it is finite.
  Constants& set(std::string_view name, std::same_as<float> auto value) {
    return add_float(name, value);
  }
  /// Becomes a kvmesh::Dtype, too: a source that names one includes kvmesh/dtype.hpp.
  Constants& set(std::string_view name, std::same_as<Dtype> auto value) {
    return add_dtype(name, value);
  }

  /// The CUDA C++ that defines them, in the order of the `set` calls.
  const std::string& text() const { return text_; }

 private:
  /// @throws InvalidArgument unless `name` is an identifier. The compiler refuses a name that was
  /// set twice.
  Constants& add(std::string_view type, std::string_view name, std::string_view value);
  Constants& add_int(std::string_view name, int value);
  Constants& add_float(std::string_view name, float value);
  Constants& add_dtype(std::string_view name, Dtype value);

  std::string text_;
};

}  // namespace kvmesh::jit
