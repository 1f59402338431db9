#include "launch/engine/matrix.hpp"

#include <fmt/format.h>

namespace kvmesh::engine {

Matrix matrix(const GgufFile& file, std::string_view name, std::int64_t rows, std::int64_t cols) {
  const GgufTensor& tensor = file.tensor(name);
  if (tensor.shape != std::array<std::int64_t, 4>{cols, rows, 1, 1}) {
    throw ModelError(fmt::format(
        "{}: tensor {} is {} x {} where the model needs {} x {}; the file contradicts itself, use "
        "another",
        file.path(), name, tensor.shape[1], tensor.shape[0], rows, cols));
  }
  const auto layout = block_layout(tensor.type);
  if (!layout || !layout->supported) {
    throw ModelError(fmt::format(
        "{}: tensor {} has type {}, which is not supported; use a model in F32, F16, BF16, Q4_0, "
        "Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K",
        file.path(), name,
        layout ? std::string(layout->name)
               : fmt::format("{}", static_cast<std::uint32_t>(tensor.type))));
  }
  if (cols % kColumnGroup != 0) {
    throw ModelError(
        fmt::format("{}: tensor {} has {} columns, this program needs a multiple of "
                    "{}; use another model",
                    file.path(), name, cols, kColumnGroup));
  }
  return {tensor.type, rows, cols, cols / layout->elements * layout->bytes,
          file.data(tensor).data()};
}

}  // namespace kvmesh::engine
