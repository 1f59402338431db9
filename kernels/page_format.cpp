#include "kvmesh/page_format.hpp"

namespace kvmesh {
namespace {

bool has_scale_planes(const KvFormat& format) {
  return has_scales(format.dtype, format.scales, ScaleKind::kPerTokenAndHead);
}

// The factors of keys (half 0) or of values (half 1) that no plane holds. `rows` are the half's.
BasicRowScale<TensorView> given_scale(const KvFormat& format, const TensorView& rows, int half,
                                      const TensorView& head_scales) {
  BasicRowScale<TensorView> scale;
  if (has_scales(format.dtype, format.scales, ScaleKind::kPerTensor)) {
    scale.number = half == 0 ? format.scales.k : format.scales.v;
  }
  if (!has_scales(format.dtype, format.scales, ScaleKind::kPerHead)) return scale;
  scale.per_token = {static_cast<float*>(head_scales.data) + half * rows.shape[1],
                     Dtype::kFloat32,
                     {rows.shape[0], rows.shape[1], rows.shape[2], 1},
                     {0, 1, 0, 1},
                     rows.device};
  return scale;
}

}  // namespace

std::string_view name(PageKind kind) { return kind == PageKind::kKv ? "kv" : "latent"; }
std::string_view name(ScaleKind kind) {
  switch (kind) {
    case ScaleKind::kPerTensor:
      return "per tensor";
    case ScaleKind::kPerTokenAndHead:
      return "per token and head";
    case ScaleKind::kPerHead:
      return "per head";
  }
  return "";
}

PageFormat make_page_format(const AttentionShape& shape, const KvFormat& format) {
  PageFormat page{.heads = shape.kv_heads, .page_size = shape.page_size};
  switch (format.kind) {
    case PageKind::kKv:
      page.planes = {{"k", format.dtype, shape.k_dim}, {"v", format.dtype, shape.v_dim}};
      if (!has_scale_planes(format)) break;
      page.planes.push_back({"k_scale", Dtype::kFloat32, 1});
      page.planes.push_back({"v_scale", Dtype::kFloat32, 1});
      break;
    case PageKind::kLatent:
      page.planes = {{"latent", format.dtype, shape.k_dim}};
      if (has_scale_planes(format)) page.planes.push_back({"scale", Dtype::kFloat32, 1});
      break;
  }
  return page;
}

KvPool kv_pool(const AttentionShape& shape, const KvFormat& format, const PagePlanes& planes,
               const TensorView& head_scales) {
  KvPool pool{planes[0], planes[0]};
  pool.k_scale = given_scale(format, pool.k, 0, head_scales);
  switch (format.kind) {
    case PageKind::kKv:
      pool.v = planes[1];
      pool.v_scale = given_scale(format, pool.v, 1, head_scales);
      if (!has_scale_planes(format)) break;
      pool.k_scale.per_token = planes[2];
      pool.v_scale.per_token = planes[3];
      break;
    case PageKind::kLatent:
      pool.v.shape[3] = shape.v_dim;
      if (has_scale_planes(format)) pool.k_scale.per_token = planes[1];
      pool.v_scale = pool.k_scale;
      break;
  }
  return pool;
}

}  // namespace kvmesh
