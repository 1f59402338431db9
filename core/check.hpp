// Argument checks with messages that name the error.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "kvmesh/error.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// Throws InvalidArgument with the formatted message unless `ok`.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) throw InvalidArgument(fmt::format(message, std::forward<Args>(args)...));
}

/// Returns `deadline`, limited to ten years, so that a point of time computed from it fits in any
/// unit.
/// @throws InvalidArgument if `deadline` is negative.
inline std::chrono::milliseconds checked_deadline(std::chrono::milliseconds deadline) {
  require(deadline.count() >= 0, "a deadline of {} ms", deadline.count());
  return std::min<std::chrono::milliseconds>(deadline, std::chrono::hours(24 * 365 * 10));
}

}  // namespace kvmesh

// Formatters of tensors, ids and devices. They make the text only when a message is formatted,
// because the checks run in every layer.
template <class Pointer>
struct fmt::formatter<kvmesh::BasicTensorView<Pointer>> : fmt::formatter<std::string> {
  template <class Context>
  auto format(const kvmesh::BasicTensorView<Pointer>& view, Context& context) const {
    return fmt::formatter<std::string>::format(kvmesh::describe(view), context);
  }
};
template <>
struct fmt::formatter<kvmesh::SequenceId> : fmt::formatter<std::string> {
  template <class Context>
  auto format(kvmesh::SequenceId sequence, Context& context) const {
    return fmt::formatter<std::string>::format(kvmesh::describe(sequence), context);
  }
};
template <>
struct fmt::formatter<kvmesh::Device> : fmt::formatter<std::string> {
  template <class Context>
  auto format(kvmesh::Device device, Context& context) const {
    return fmt::formatter<std::string>::format(kvmesh::describe(device), context);
  }
};
