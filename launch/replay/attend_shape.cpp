#include "launch/replay/attend_shape.hpp"

#include <fmt/format.h>

#include "kvmesh/error.hpp"

namespace kvmesh::replay {
namespace {

// More than models have, so that products of these numbers are far below 2^63.
constexpr int kMostHeads = 4096, kMostLayers = 4096;
constexpr int kMostDim = 576;                   // that attention takes
constexpr std::int64_t kMostQueries = 1 << 16;  // as rows of q and o have copies on the host

std::string counted(int count, const char* noun) {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : "s");
}

}  // namespace

std::int64_t AttendShape::token_bytes() const {
  const std::int64_t elements = std::int64_t{2} * layers * kv_heads * dim;
  return elements * static_cast<std::int64_t>(size_bytes(dtype));
}

AttendShape default_shape(DeviceKind device) {
  if (device == DeviceKind::kCpu) return {};
  return {.q_heads = 32, .kv_heads = 8, .dim = 128, .dtype = Dtype::kBFloat16, .queries = 256};
}

void check(const AttendShape& shape) {
  const auto in_range = [](const char* flag, std::int64_t value, std::int64_t most) {
    if (value >= 1 && value <= most) return;
    throw InvalidArgument(fmt::format("{} {} is not in [1, {}]", flag, value, most));
  };
  in_range("--layers", shape.layers, kMostLayers);
  in_range("--q-heads", shape.q_heads, kMostHeads);
  in_range("--kv-heads", shape.kv_heads, kMostHeads);
  in_range("--dim", shape.dim, kMostDim);
  in_range("--queries", shape.queries, kMostQueries);
  if (shape.q_heads % shape.kv_heads != 0) {
    throw InvalidArgument(fmt::format("--q-heads {} are no multiple of --kv-heads {}",
                                      shape.q_heads, shape.kv_heads));
  }
}

std::string describe(const AttendShape& shape) {
  return fmt::format("{} of {} and {} of dim {} in {}", counted(shape.layers, "layer"),
                     counted(shape.q_heads, "query head"), counted(shape.kv_heads, "kv head"),
                     shape.dim, name(shape.dtype));
}

}  // namespace kvmesh::replay
