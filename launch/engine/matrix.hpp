// A view of a weight matrix in the mapped model file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "launch/engine/gguf/gguf.hpp"

namespace kvmesh::engine {

/// W[rows][cols], each row a whole number of blocks. A view: the file must outlive it.
struct Matrix {
  WeightType type = WeightType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_bytes = 0;
  const std::byte* data = nullptr;

  const std::byte* row(std::int64_t index) const { return data + index * row_bytes; }
};

/// Columns come in whole groups of this many: the blocks of the common types, and whole vectors.
inline constexpr std::int64_t kColumnGroup = 32;

/// @throws ModelError if the tensor is missing, has another shape or a type that multiply() cannot
/// read.
Matrix matrix(const GgufFile& file, std::string_view name, std::int64_t rows, std::int64_t cols);

}  // namespace kvmesh::engine
