#include "kvmesh/page_format.hpp"

namespace kvmesh {

PageFormat make_page_format(const AttentionShape& shape, const KvFormat& format) {
  return {.heads = shape.kv_heads,
          .page_size = shape.page_size,
          .planes = {{"k", format.dtype, shape.k_dim}, {"v", format.dtype, shape.v_dim}}};
}

KvPool kv_pool(const AttentionShape&, const KvFormat&, const PagePlanes& planes) {
  return {planes[0], planes[1]};
}

}  // namespace kvmesh
