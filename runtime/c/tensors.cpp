#include "runtime/c/tensors.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "runtime/c/guard.hpp"

namespace kvmesh::c {
namespace {

// DLPack's numbers.
enum TypeCode { kInt = 0, kUnsigned = 1, kFloat = 2, kBfloat = 4, kBool = 6, kFloat8E4M3Fn = 10 };
enum DeviceType { kHost = 1, kCuda = 2 };

Dtype dtype_of(const kvmesh_tensor_t& tensor, const char* what) {
  if (tensor.type_lanes == 1) {
    if (tensor.type_code == kFloat && tensor.type_bits == 32) return Dtype::kFloat32;
    if (tensor.type_code == kFloat && tensor.type_bits == 16) return Dtype::kFloat16;
    if (tensor.type_code == kBfloat && tensor.type_bits == 16) return Dtype::kBFloat16;
    if (tensor.type_code == kFloat8E4M3Fn && tensor.type_bits == 8) return Dtype::kFloat8E4M3;
  }
  throw InvalidArgument(fmt::format(
      "{} has elements of type code {}, {} bits, {} lanes: want float32, float16, bfloat16 or, of "
      "pages, float8_e4m3fn",
      what, tensor.type_code, tensor.type_bits, tensor.type_lanes));
}

ModType mod_type_of(const kvmesh_tensor_t& tensor) {
  if (tensor.type_lanes == 1) {
    if (tensor.type_code == kFloat && tensor.type_bits == 32) return ModType::kFloat32;
    if (tensor.type_code == kInt && tensor.type_bits == 32) return ModType::kInt32;
    const bool is_bool = tensor.type_code == kUnsigned || tensor.type_code == kBool;
    if (is_bool && tensor.type_bits == 8) return ModType::kBool;
  }
  throw InvalidArgument(fmt::format(
      "a mod's buffer has elements of type code {}, {} bits: want float32, int32 or bool",
      tensor.type_code, tensor.type_bits));
}

}  // namespace

Device device_of(std::int32_t type, std::int32_t id, const char* what) {
  if (type == kHost) return {};
  require(type == kCuda, "{} on a device of type {}: want 1 (host) or 2 (CUDA)", what, type);
  return {DeviceKind::kCuda, id};
}

TensorView view(const kvmesh_tensor_t* given, const char* what) {
  const kvmesh_tensor_t& tensor = checked(given, what);
  require(tensor.ndim >= 0 && tensor.ndim <= TensorView::kMaxDims,
          "{} has {} extents, at most {} are possible", what, tensor.ndim, TensorView::kMaxDims);
  require(tensor.ndim == 0 || tensor.shape != nullptr, "{} has no shape", what);
  TensorView view;
  view.data = static_cast<std::byte*>(tensor.data) + (tensor.data ? tensor.byte_offset : 0);
  view.dtype = dtype_of(tensor, what);
  view.dims = tensor.ndim;
  view.device = device_of(tensor.device_type, tensor.device_id, what);
  std::uint64_t stride = 1;  // may wrap around: functions that take a view check it
  for (auto i = static_cast<std::size_t>(tensor.ndim); i-- > 0;) {
    view.shape[i] = tensor.shape[i];
    view.strides[i] = tensor.strides ? tensor.strides[i] : static_cast<std::int64_t>(stride);
    stride *= static_cast<std::uint64_t>(tensor.shape[i]);
  }
  return view;
}

TensorView view_or_empty(const kvmesh_tensor_t* tensor, const char* what) {
  if (tensor == nullptr) return {};
  const TensorView given = view(tensor, what);
  const auto end = given.shape.begin() + given.dims;
  require(!given.empty() || std::find(given.shape.begin(), end, 0) != end, "{}: {} has no data",
          what, given);
  return given;
}

Partial partial(const kvmesh_tensor_t* o, const kvmesh_tensor_t* lse) {
  return {.o = view(o, "partial_o"), .lse = view(lse, "partial_lse")};
}

ModBuffer copy_of(const kvmesh_tensor_t* given) {
  const kvmesh_tensor_t& tensor = checked(given, "a mod's buffer");
  const ModType type = mod_type_of(tensor);
  require(tensor.device_type == kHost && tensor.ndim == 1 && tensor.data && tensor.shape &&
              (!tensor.strides || tensor.strides[0] == 1),
          "a mod's buffer is not a contiguous tensor of one dimension in host memory");
  const std::int64_t size = tensor.shape[0];
  check_buffer(size, 1);
  const auto* first = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
  const std::size_t bytes = static_cast<std::size_t>(size) * (type == ModType::kBool ? 1 : 4);
  const auto copy = std::make_shared<std::vector<std::byte>>(first, first + bytes);
  return {.owner = copy, .data = copy->data(), .size = size, .type = type};
}

Dtype dtype_of(std::int32_t number) {
  return choice({Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat8E4M3}, number,
                "dtype", KVMESH_DTYPE_FLOAT32);
}

Scatter scatter_of(std::int32_t number) {
  constexpr Scatter kScatters[] = {Scatter::kAll, Scatter::kHeads, Scatter::kTokens,
                                   Scatter::kOwner};
  require(number >= 0 && number <= KVMESH_SCATTER_OWNER, "scatter {} is not valid", number);
  return kScatters[number];
}

CombineStrategy strategy_of(std::int32_t number) {
  constexpr CombineStrategy kStrategies[] = {
      CombineStrategy::kAuto, CombineStrategy::kReduceScatter, CombineStrategy::kAllToAll,
      CombineStrategy::kAllReduce};
  require(number >= 0 && number <= KVMESH_COMBINE_ALL_REDUCE, "strategy {} is not valid", number);
  return kStrategies[number];
}

}  // namespace kvmesh::c
