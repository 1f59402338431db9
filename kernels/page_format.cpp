#include "kvmesh/page_format.hpp"

namespace kvmesh {

std::string_view name(PageKind kind) { return kind == PageKind::kKv ? "kv" : "latent"; }

PageFormat make_page_format(const AttentionShape& shape, const KvFormat& format) {
  PageFormat page{.heads = shape.kv_heads, .page_size = shape.page_size};
  switch (format.kind) {
    case PageKind::kKv:
      page.planes = {{"k", format.dtype, shape.k_dim}, {"v", format.dtype, shape.v_dim}};
      break;
    case PageKind::kLatent:
      page.planes = {{"latent", format.dtype, shape.k_dim}};
      break;
  }
  return page;
}

KvPool kv_pool(const AttentionShape& shape, const KvFormat& format, const PagePlanes& planes) {
  KvPool pool{planes[0], planes[0]};
  switch (format.kind) {
    case PageKind::kKv:
      pool.v = planes[1];
      break;
    case PageKind::kLatent:
      pool.v.shape[3] = shape.v_dim;
      break;
  }
  return pool;
}

}  // namespace kvmesh
