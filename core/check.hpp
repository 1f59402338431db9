// Argument checks that say what was wrong.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// Throws InvalidArgument with the formatted message unless `ok`.
template <class... Args>
void require(bool ok, fmt::format_string<Args...> message, Args&&... args) {
  if (!ok) throw InvalidArgument(fmt::format(message, std::forward<Args>(args)...));
}

}  // namespace kvmesh
