#include "launch/common/scale_flag.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "kvmesh/error.hpp"

namespace kvmesh::launch {

std::string typed(ScaleKind kind) {
  std::string text(name(kind));
  std::ranges::replace(text, ' ', '_');
  return text;
}

ScaleKind scale_kind_from(const std::string& text) {
  for (const ScaleKind kind :
       {ScaleKind::kPerTokenAndHead, ScaleKind::kPerHead, ScaleKind::kPerTensor}) {
    if (text == typed(kind)) return kind;
  }
  throw InvalidArgument(
      fmt::format("--kv-scales '{}' is none of per_token_and_head, per_head, per_tensor", text));
}

}  // namespace kvmesh::launch
