// A source text that is compiled while the program runs.
#pragma once

#include <string_view>

namespace kvmesh::jit {

/// Views of text that outlives them: usually text that the build embedded (cmake's kvmesh_embed).
struct SourceFile {
  std::string_view name;  ///< the path from the root, by which other files include it
  std::string_view text;
};

}  // namespace kvmesh::jit
