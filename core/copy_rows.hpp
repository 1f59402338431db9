// A rectangle of bytes from one place to another.
#pragma once

#include <cstddef>

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// `count` rows of `width` bytes, the next row `*_pitch` bytes further on each side.
struct Rows {
  void* to = nullptr;
  std::size_t to_pitch = 0;
  const void* from = nullptr;
  std::size_t from_pitch = 0;
  std::size_t width = 0;
  std::size_t count = 0;
};

/// Done when it returns on the CPU; on a GPU it runs in the order of the default stream.
void copy_rows(const Rows& rows, Device device);

}  // namespace kvmesh
