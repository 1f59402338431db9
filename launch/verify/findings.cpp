#include "launch/verify/findings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvmesh::verify {
namespace {

bool has_tensor_cores(Device device, Dtype pool) {
  return device.kind != DeviceKind::kCpu && info_of(pool).bits == 16;
}

}  // namespace

Tolerances arithmetic_tolerances(Device device, Dtype pool) {
  if (!has_tensor_cores(device, pool)) return {};
  const double rounding = pool == Dtype::kBFloat16 ? 0x1p-8 : 0x1p-11;
  // O: twice the rounding of a weight, as float16's below 2^-14 are off by more of themselves. LSE:
  // tensor cores cut sums off where others round them, which is up to a unit, not half of one.
  return {.o = 2 * rounding, .lse = 2 * kTolerance};
}

bool may_round_queries(Device device, Dtype pool, Dtype queries) {
  return has_tensor_cores(device, pool) && queries != pool;
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
