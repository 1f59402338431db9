// `kvmesh generate`: a real model writes text with its KV cache spread over the ranks.
#pragma once

#include <string>

#include "kvmesh/mesh.hpp"
#include "launch/cli/generator.hpp"

namespace kvmesh::launch {

struct GenerateOptions {
  std::string model;
  std::string prompt;
  bool chat = true;  ///< put the prompt into the model's chat format, if it has one
  std::int64_t max_tokens = 128;
  bool ranks_check = false;
  GeneratorOptions generator;  ///< pages_per_rank 0: what prompt and answer need
};

/// Collective. Rank 0 writes the text, as it comes, to standard output, then what it cost.
/// Returns the exit status: 0, or 1 if `ranks_check` found other tokens.
/// @throws Error, the same on every rank.
int run_generate(Mesh& mesh, const GenerateOptions& options);

}  // namespace kvmesh::launch
