// `kvmesh generate`: a real model writes text with its KV cache spread over the ranks.
#pragma once

#include <string>

#include "kvmesh/mesh.hpp"
#include "launch/cli/generator.hpp"
#include "launch/cli/output.hpp"

namespace kvmesh::launch {

struct GenerateOptions {
  std::string model;
  std::string prompt;
  bool chat = true;  ///< put the prompt into the model's chat format, if it has one
  std::int64_t max_tokens = 128;
  bool ranks_check = false;
  GeneratorOptions generator;  ///< pages_per_rank 0: what prompt and answer need
};

/// Collective; the options are the same on all ranks but for the model's path, whose content is
/// compared. Rank 0 writes the text, as it comes, to standard output, then what it cost to standard
/// error; and all of it as JSON to `json` ("-": standard output, instead of the text) if that is
/// not empty. Returns the exit status: 0, or 1 if `ranks_check` found other tokens.
/// @throws Error, the same on every rank; OutputError on rank 0.
int run_generate(Mesh& mesh, const GenerateOptions& options, const std::string& json, Output& out);

}  // namespace kvmesh::launch
