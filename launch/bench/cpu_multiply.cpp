#include "launch/bench/cpu_multiply.hpp"

// Each target is compiled separately; the ones left out add nothing to a multiply-add.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "launch/bench/cpu_multiply.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace kvmesh::bench::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
constexpr Floats kFloats{};

// Twelve independent sums: two units, each with a latency of four or five cycles, are kept busy,
// and with the two factors they fit into sixteen registers.
constexpr std::int64_t kSums = 12;

float Multiply(std::int64_t steps) {
  // Factors that keep the sums finite and are unknown to the compiler.
  volatile float below_one = 0.999f, small = 1e-3f;
  const auto a = hn::Set(kFloats, below_one), b = hn::Set(kFloats, small);
  // The sums begin unequal, or the compiler would compute only one.
  const auto start = [&](int i) { return hn::Set(kFloats, small * static_cast<float>(i)); };
  auto s0 = start(0), s1 = start(1), s2 = start(2), s3 = start(3), s4 = start(4), s5 = start(5);
  auto s6 = start(6), s7 = start(7), s8 = start(8), s9 = start(9), s10 = start(10), s11 = start(11);
  for (std::int64_t step = 0; step < steps; ++step) {
    s0 = hn::MulAdd(s0, a, b);
    s1 = hn::MulAdd(s1, a, b);
    s2 = hn::MulAdd(s2, a, b);
    s3 = hn::MulAdd(s3, a, b);
    s4 = hn::MulAdd(s4, a, b);
    s5 = hn::MulAdd(s5, a, b);
    s6 = hn::MulAdd(s6, a, b);
    s7 = hn::MulAdd(s7, a, b);
    s8 = hn::MulAdd(s8, a, b);
    s9 = hn::MulAdd(s9, a, b);
    s10 = hn::MulAdd(s10, a, b);
    s11 = hn::MulAdd(s11, a, b);
  }
  const auto sum = hn::Add(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)),
                           hn::Add(hn::Add(hn::Add(s4, s5), hn::Add(s6, s7)),
                                   hn::Add(hn::Add(s8, s9), hn::Add(s10, s11))));
  return hn::GetLane(sum);
}

std::int64_t OperationsOfStep() {
  return 2 * kSums * static_cast<std::int64_t>(hn::Lanes(kFloats));
}

}  // namespace kvmesh::bench::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvmesh::bench {

HWY_EXPORT(Multiply);
HWY_EXPORT(OperationsOfStep);

float multiply_from_registers(std::int64_t steps) { return HWY_DYNAMIC_DISPATCH(Multiply)(steps); }
std::int64_t operations_of_step() { return HWY_DYNAMIC_DISPATCH(OperationsOfStep)(); }

}  // namespace kvmesh::bench
#endif
