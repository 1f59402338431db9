#include "launch/verify/findings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

namespace kvmesh::verify {
namespace {

/// The type that tensor cores multiply over such pages; nothing if they do not.
std::optional<Dtype> multiplied(Device device, Dtype pool) {
  if (device.kind == DeviceKind::kCpu || info_of(pool).bits > 16) return std::nullopt;
  return info_of(pool).bits == 16 ? pool : Dtype::kFloat16;
}

}  // namespace

Tolerances arithmetic_tolerances(Device device, Dtype pool) {
  const std::optional<Dtype> weights = multiplied(device, pool);
  if (!weights) return {};
  const double rounding = *weights == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
  // O: twice the rounding of a weight, as float16 below 2^-14 has a larger relative error. LSE:
  // tensor cores truncate sums that others round, which is up to a unit, not half of one.
  return {.o = 2 * rounding, .lse = 2 * kTolerance};
}

Dtype rounded_query_type(Device device, Dtype pool, Dtype queries) {
  // Rows are scaled before they become float16 over float8 pages, which leaves bfloat16 as it is.
  if (info_of(pool).has_scales && queries != Dtype::kFloat32) return queries;
  return multiplied(device, pool).value_or(queries);
}

double Bound::around(double want) const {
  // Half a unit in the last place: 11 bits, with subnormals 2^-24 apart, and 8 bits.
  const double size = std::abs(want);
  const double rounding = dtype == Dtype::kFloat16    ? std::max(size * 0x1p-11, 0x1p-25)
                          : dtype == Dtype::kBFloat16 ? size * 0x1p-8
                                                      : 0;
  return tolerance * std::max(1.0, size) + spread + rounding;
}

void Findings::fail(const std::string& message) {
  constexpr std::size_t kKept = 3;
  ++failed_;
  if (messages_.size() < kKept) messages_.push_back(message);
}

void Findings::fail_number(const std::string& where, double got, double want) {
  fail(fmt::format("{}: got {:.9g}, want {:.9g}", where, got, want));
}

}  // namespace kvmesh::verify
