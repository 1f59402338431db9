#include "launch/bench/scales.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace kvmesh::bench {

std::string typed(ScaleKind kind) {
  std::string text(name(kind));
  std::ranges::replace(text, ' ', '_');
  return text;
}

ScaleKind scale_kind_of(const std::string& text) {
  for (const ScaleKind kind :
       {ScaleKind::kPerTokenAndHead, ScaleKind::kPerHead, ScaleKind::kPerTensor}) {
    if (text == typed(kind)) return kind;
  }
  throw InvalidArgument(
      fmt::format("--kv-scales '{}' is none of per_token_and_head, per_head, per_tensor", text));
}

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
