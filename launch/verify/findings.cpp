#include "launch/verify/findings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace kvmesh::verify {

double arithmetic_tolerance(Device device, Dtype pool, Dtype queries) {
  if (device.kind == DeviceKind::kCpu || pool == Dtype::kFloat32) return kTolerance;
  const double rounding = pool == Dtype::kBFloat16 ? 0x1p-9 : 0x1p-12;
  return (queries == pool ? 4 : 16) * rounding;
}

double Findings::bound(double want, Dtype dtype) const {
  // Half a unit in the last place: 11 bits, with subnormals 2^-24 apart, and 8 bits.
  const double size = std::abs(want);
  const double rounding = dtype == Dtype::kFloat16    ? std::max(size * 0x1p-11, 0x1p-25)
                          : dtype == Dtype::kBFloat16 ? size * 0x1p-8
                                                      : 0;
  return tolerance_ * std::max(1.0, size) + rounding;
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
