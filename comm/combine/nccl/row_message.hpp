// The place of one rank's rows in a buffer: plain, for host and device.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Rows between this rank and one peer: a place in a buffer, in floats, and how many rows lie
/// there: all of their O [rows, dim], then all of their LSE [rows].
struct RowMessage {
  std::int64_t offset = 0;
  std::int64_t rows = 0;
  friend bool operator==(const RowMessage&, const RowMessage&) = default;
};

}  // namespace kvmesh
