// Copies a rectangle of bytes.
#pragma once

#include <cstddef>

#include "kvmesh/stream.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// `count` rows of `width` bytes. On each side the next row starts `*_pitch` bytes after the last.
struct Rows {
  void* to = nullptr;
  std::size_t to_pitch = 0;
  const void* from = nullptr;
  std::size_t from_pitch = 0;
  std::size_t width = 0;
  std::size_t count = 0;
};

/// Copies the rows. On the CPU the copy is complete on return; on a GPU it runs in the order of
/// `stream`.
void copy_rows(const Rows& rows, Device device, Stream stream = {});

}  // namespace kvmesh
