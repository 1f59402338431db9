// `kvmesh generate`: a real model writes text with its KV cache spread over the ranks.
#pragma once

#include <string>
#include <vector>

#include "kvmesh/mesh.hpp"
#include "launch/cli/generator.hpp"
#include "launch/cli/output.hpp"

namespace kvmesh::launch {

struct GenerateOptions {
  std::string model;
  std::vector<std::string> prompts;  ///< turns of one conversation
  bool chat = true;               ///< put the prompts into the model's chat format, if it has one
  std::int64_t max_tokens = 128;  ///< of each answer
  /// Instead of prompts: a file of an exported sequence, on rank 0's machine, to go on from.
  std::string import_from;
  /// Write the last prompt's sequence to this file on rank 0's machine, and no text. Needs
  /// max_tokens 1.
  std::string export_to;
  bool ranks_check = false;
  GeneratorOptions generator;  ///< pages_per_rank 0: as many as the conversation needs
};

/// Writes the answers to the prompts, one after another. Rank 0 writes the text to standard output
/// token by token, and statistics to standard error. If `json` is not empty it writes all results
/// as JSON to that file, or to standard output instead of the text if it is "-". REQUIRES: equal
/// options on all ranks; the paths of the model may differ, since the contents are compared.
/// Returns the exit status: 0, or 1 if `ranks_check` found other tokens.
/// @throws Error, the same on every rank; OutputError on rank 0.
/// Collective.
int run_generate(Mesh& mesh, const GenerateOptions& options, const std::string& json, Output& out);

}  // namespace kvmesh::launch
