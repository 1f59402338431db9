#include "kvmesh/page_format.hpp"

namespace kvmesh {
namespace {

bool has_scale_planes(const KvFormat& format) {
  return info_of(format.dtype).has_scales && format.scales.kind == ScaleKind::kPerTokenAndHead;
}

// The factor of all rows.
float number_of(const KvFormat& format, float number) {
  const bool holds =
      info_of(format.dtype).has_scales && format.scales.kind == ScaleKind::kPerTensor;
  return holds ? number : 1.0f;
}

}  // namespace

std::string_view name(PageKind kind) { return kind == PageKind::kKv ? "kv" : "latent"; }
std::string_view name(ScaleKind kind) {
  return kind == ScaleKind::kPerTensor ? "per tensor" : "per token and head";
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

KvPool kv_pool(const AttentionShape& shape, const KvFormat& format, const PagePlanes& planes) {
  KvPool pool{planes[0], planes[0]};
  pool.k_scale.number = number_of(format, format.scales.k);
  switch (format.kind) {
    case PageKind::kKv:
      pool.v = planes[1];
      pool.v_scale.number = number_of(format, format.scales.v);
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
