// Argument checks that say what was wrong.
#pragma once

#include <fmt/format.h>

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

}  // namespace kvmesh

// Tensors and devices in messages, put into words only where a message is made: checks are on the
// way of every layer.
template <class Pointer>
struct fmt::formatter<kvmesh::BasicTensorView<Pointer>> : fmt::formatter<std::string> {
  template <class Context>
  auto format(const kvmesh::BasicTensorView<Pointer>& view, Context& context) const {
    return fmt::formatter<std::string>::format(kvmesh::describe(view), context);
  }
};
template <>
struct fmt::formatter<kvmesh::Device> : fmt::formatter<std::string> {
  template <class Context>
  auto format(kvmesh::Device device, Context& context) const {
    return fmt::formatter<std::string>::format(kvmesh::describe(device), context);
  }
};
