#include "runtime/memory/head_scales.hpp"

namespace kvmesh {

bool has_scales(const CacheOptions& group, ScaleKind kind) {
  return group.state_bytes == 0 && has_scales(group.dtype, group.scales, kind);
}

std::vector<float> head_scales_of(const Mesh& mesh, const CacheOptions& group) {
  std::vector<float> mine;
  if (!has_scales(group, ScaleKind::kPerHead)) return mine;
  const std::int64_t heads = group.kv_heads / mesh.head_parallel();
  for (const std::vector<float>* half : {&group.scales.k_heads, &group.scales.v_heads}) {
    if (half->empty()) continue;  // of the values of latent pages
    const auto begin = half->begin() + heads * mesh.head_rank();
    mine.insert(mine.end(), begin, begin + heads);
  }
  return mine;
}

}  // namespace kvmesh
