#include "launch/verify/host_tensor.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace kvmesh::verify {
namespace {

// All bits set is a NaN in each of the three types.
constexpr std::byte kPoison{0xFF};

// Returns the bits of a number that is a float16. Uses frexp and ldexp, slowly: it shares no code
// with the conversions that it checks.
std::uint16_t float16_bits(float value) {
  const int sign = std::signbit(value) ? 0x8000 : 0;
  int exponent = 0;
  const float fraction = std::frexp(std::abs(value), &exponent);  // in [0.5, 1), or 0
  if (fraction == 0 || exponent < -13) {
    return static_cast<std::uint16_t>(sign | static_cast<int>(std::ldexp(std::abs(value), 24)));
  }
  const int mantissa = static_cast<int>(std::ldexp(fraction, 11)) - 1024;
  return static_cast<std::uint16_t>(sign | (exponent + 14) << 10 | mantissa);
}

float float16_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) {
    return mantissa ? std::numeric_limits<float>::quiet_NaN()
                    : sign * std::numeric_limits<float>::infinity();
  }
  const float size = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                   : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return sign * size;
}

// Elements from head to head. A multiple of 16 bytes if the dim is one, since a GPU has other
// kernels for rows that begin there; 0 for a matrix.
std::int64_t gap_after(std::int64_t dim) { return dim == 1 ? 0 : dim % 8 == 0 ? 8 : 3; }

// Bits of numbers that a type keeps, from the exponent `smallest` on (frexp's); below, the spacing
// is constant. Numbers past `largest` become `largest`, unless it is 0.
struct NumberFormat {
  int bits, smallest;
  float largest;
};
NumberFormat format_of(Dtype dtype) {
  if (dtype == Dtype::kFloat8E4M3) return {4, -5, 448};
  return dtype == Dtype::kFloat16 ? NumberFormat{11, -13, 0} : NumberFormat{8, -125, 0};
}

}  // namespace

float rounded_to(Dtype dtype, float value) {
  if (dtype == Dtype::kFloat32 || std::isnan(value)) return value;
  const NumberFormat format = format_of(dtype);
  const float largest = format.largest;
  if (std::isinf(value)) return largest > 0 ? std::copysign(largest, value) : value;
  int exponent = 0;
  std::frexp(value, &exponent);
  exponent = std::max(exponent, format.smallest);
  const float rounded =
      std::ldexp(std::nearbyint(std::ldexp(value, format.bits - exponent)), exponent - format.bits);
  return largest > 0 ? std::clamp(rounded, -largest, largest) : rounded;
}

std::vector<float> stored_row(std::vector<float> row, Dtype dtype, const KvScales& scales,
                              float number) {
  if (dtype != Dtype::kFloat8E4M3) {
    for (float& value : row) value = rounded_to(dtype, value);
    return row;
  }
  float scale = number;
  if (scales.kind == ScaleKind::kPerTokenAndHead) {
    float largest = 0;
    for (float value : row) largest = std::max(largest, std::abs(value));
    scale = std::max(largest / 448, std::numeric_limits<float>::min());
  }
  for (float& value : row) value = scale * rounded_to(dtype, value / scale);
  return row;
}

HostTensor::HostTensor(Dtype dtype, std::int64_t rows, std::int64_t heads, std::int64_t dim,
                       Device device)
    : dtype_(dtype),
      rows_(rows),
      heads_(heads),
      dim_(dim),
      head_stride_(dim + gap_after(dim)),
      row_stride_((heads + 1) * head_stride_),
      device_(device),
      host_({}, static_cast<std::size_t>((rows + 1) * row_stride_) * size_bytes(dtype)) {
  std::fill_n(bytes(), host_.size_bytes(), kPoison);
  if (device.kind != DeviceKind::kCpu) there_ = DeviceMemory(device, host_.size_bytes());
}

TensorView HostTensor::on_device(IndexRange heads) {
  if (device_.kind == DeviceKind::kCpu) return view(heads);
  copy_bytes(there_.data(), host_.data(), host_.size_bytes());
  return view_at(there_.data(), heads, device_);
}

void HostTensor::fetch() {
  if (device_.kind == DeviceKind::kCpu) return;
  copy_bytes(host_.data(), there_.data(), host_.size_bytes());
}

TensorView HostTensor::view_at(void* data, IndexRange heads, Device device) const {
  const auto first = static_cast<std::size_t>(heads.begin * head_stride_) * size_bytes(dtype_);
  return {static_cast<std::byte*>(data) + first,
          dtype_,
          {rows_, heads.size(), dim_},
          {row_stride_, head_stride_, 1},
          device};
}

TensorView HostTensor::matrix_of(const TensorView& view) {
  return {view.data,
          view.dtype,
          {view.size(0), view.size(1)},
          {view.stride(0), view.stride(1)},
          view.device};
}

float HostTensor::read(std::int64_t offset) const {
  const std::byte* at = bytes() + static_cast<std::size_t>(offset) * size_bytes(dtype_);
  if (dtype_ == Dtype::kFloat32) {
    float value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return dtype_ == Dtype::kFloat16 ? float16_value(bits)
                                   : std::bit_cast<float>(std::uint32_t{bits} << 16);
}

float HostTensor::get(std::int64_t row, std::int64_t head, std::int64_t d) const {
  return read(offset(row, head, d));
}

std::vector<float> HostTensor::elements(std::int64_t row, std::int64_t head) const {
  std::vector<float> values;
  for (std::int64_t d = 0; d < dim_; ++d) values.push_back(get(row, head, d));
  return values;
}

void HostTensor::set(std::int64_t row, std::int64_t head, std::int64_t d, float value) {
  std::byte* at = bytes() + static_cast<std::size_t>(offset(row, head, d)) * size_bytes(dtype_);
  const float rounded = rounded_to(dtype_, value);
  if (dtype_ == Dtype::kFloat32) {
    std::memcpy(at, &rounded, sizeof rounded);
    return;
  }
  const std::uint16_t bits =
      dtype_ == Dtype::kFloat16
          ? float16_bits(rounded)
          : static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(rounded) >> 16);
  std::memcpy(at, &bits, sizeof bits);
}

void HostTensor::copy_row(std::int64_t from, std::int64_t to) {
  const auto row_bytes = static_cast<std::size_t>(row_stride_) * size_bytes(dtype_);
  std::memcpy(bytes() + static_cast<std::size_t>(to) * row_bytes,
              bytes() + static_cast<std::size_t>(from) * row_bytes, row_bytes);
}

bool HostTensor::gaps_untouched() const {
  for (std::int64_t row = 0; row <= rows_; ++row) {
    const std::int64_t heads = row < rows_ ? heads_ : 0;
    const std::int64_t end = (row + 1) * row_stride_;
    for (std::int64_t at = row * row_stride_, head = 0; at < end; ++at) {
      if (head < heads && at == offset(row, head, 0)) {
        at += dim_ - 1;
        ++head;
      } else if (!std::isnan(read(at))) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace kvmesh::verify
