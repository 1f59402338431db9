// exp and log of vectors for any float, on Highway's. Each of Highway's targets includes this once.
#if defined(KVMESH_FLOAT_MATH_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef KVMESH_FLOAT_MATH_INL
#undef KVMESH_FLOAT_MATH_INL
#else
#define KVMESH_FLOAT_MATH_INL
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <limits>

HWY_BEFORE_NAMESPACE();
namespace kvmesh::HWY_NAMESPACE {

/// Highway's Exp is right up to 104 and turns NaN into 0.
template <class Tag, class Floats>
HWY_INLINE Floats exp_everywhere(Tag tag, Floats x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const Floats inside = hn::Exp(tag, hn::Min(x, hn::Set(tag, 104.0f)));
  return hn::IfThenElse(hn::IsNaN(x), x, inside);
}

/// Highway's Log takes positive finite numbers.
template <class Tag, class Floats>
HWY_INLINE Floats log_everywhere(Tag tag, Floats x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const Floats infinity = hn::Set(tag, std::numeric_limits<float>::infinity());
  const Floats nan = hn::Set(tag, std::numeric_limits<float>::quiet_NaN());
  const Floats inside = hn::Log(tag, x);
  const Floats at_zero = hn::IfThenElse(hn::Eq(x, hn::Zero(tag)), hn::Neg(infinity), inside);
  const Floats up = hn::IfThenElse(hn::Eq(x, infinity), infinity, at_zero);
  return hn::IfThenElse(hn::Ge(x, hn::Zero(tag)), up, nan);
}

}  // namespace kvmesh::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
