#include "launch/bench/scales.hpp"

namespace kvmesh::bench {

KvScales scales_of(const Shape& shape) {
  KvScales scales{.kind = shape.kv_scales};
  if (scales.kind == ScaleKind::kPerTensor) scales.k = scales.v = 0.75f;
  if (scales.kind != ScaleKind::kPerHead) return scales;
  for (int head = 0; head < shape.kv_heads; ++head) {
    const float part = static_cast<float>(head) / static_cast<float>(shape.kv_heads);
    scales.k_heads.push_back(0.5f + 0.5f * part);
    if (!shape.is_latent()) scales.v_heads.push_back(1 - 0.5f * part);
  }
  return scales;
}

}  // namespace kvmesh::bench
