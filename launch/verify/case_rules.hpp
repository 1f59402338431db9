// The rules that all cases of a run of `kvmesh verify` have in common.
#pragma once

#include <optional>

#include "kvmesh/page_format.hpp"

namespace kvmesh::verify {

struct CaseRules {
  /// The caches are reproducible, and every bit must be that of one rank with each sequence alone.
  bool reproducible = false;
  /// All pages are float8 with this kind of scales. REQUIRES: on GPUs, no reproducible caches.
  std::optional<ScaleKind> kv_scales{};
};

}  // namespace kvmesh::verify
