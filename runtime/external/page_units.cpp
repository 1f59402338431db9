#include "runtime/external/page_units.hpp"

#include <limits>

#include "core/check.hpp"

namespace kvmesh {
namespace {

/// @throws InvalidArgument if a plane's units are not those of the keys.
void check_step(const ConstTensorView& plane, const PageUnits& units) {
  if (plane.empty() || units.whole() || plane.size(0) <= 1) return;
  const std::int64_t unit = units.tokens * plane.stride(2);
  require(plane.stride(0) == units.step * unit,
          "external pool: pages of {} lie {} units of {} tokens apart, those of the plan's keys {}",
          plane, unit == 0 ? 0 : plane.stride(0) / unit, units.tokens, units.step);
}

void cut(TensorView& plane, const PageUnits& units) {
  if (plane.empty() || units.whole()) return;
  check_step(plane, units);
  plane.shape[0] = units.count(plane.size(0));
  plane.shape[2] = units.tokens;
  plane.strides[0] = units.tokens * plane.stride(2);
}

}  // namespace

PageUnits page_units(const ConstKvPool& layer, int tokens) {
  const ConstTensorView& k = layer.k;
  require(tokens > 0 && k.size(2) % tokens == 0, "external pool: pages of {} in units of {} tokens",
          k.size(2), tokens);
  PageUnits units{.tokens = tokens, .per_page = k.size(2) / tokens};
  units.step = units.per_page;
  const std::int64_t unit = tokens * k.stride(2);
  if (!units.whole() && k.size(0) > 1) {
    require(unit > 0 && k.stride(0) % unit == 0,
            "external pool: pages of {} do not begin at whole units of {} tokens", k, tokens);
    units.step = k.stride(0) / unit;
  }
  require(k.size(0) <= std::numeric_limits<std::int32_t>::max() / units.step - 1,
          "external pool: {} in units of {} tokens are too many", k, tokens);
  for (const ConstTensorView* plane :
       {&layer.v, &layer.k_scale.per_token, &layer.v_scale.per_token}) {
    check_step(*plane, units);
  }
  return units;
}

KvPool in_units(const KvPool& pool, const PageUnits& units) {
  KvPool cut_pool = pool;
  for (TensorView* plane :
       {&cut_pool.k, &cut_pool.v, &cut_pool.k_scale.per_token, &cut_pool.v_scale.per_token}) {
    cut(*plane, units);
  }
  return cut_pool;
}

}  // namespace kvmesh
