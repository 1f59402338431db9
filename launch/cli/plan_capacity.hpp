// `kvmesh plan-capacity`: computes whether a batch fits on some GPUs, and how fast they decode it.
#pragma once

#include <cstdint>
#include <string>

#include "launch/cli/output.hpp"

namespace CLI {
class App;
}

namespace kvmesh::launch {

struct CapacityOptions {
  std::string model{};  ///< a GGUF file, for the shape; empty: the five that follow
  int layers = 32;
  int q_heads = 64;
  int kv_heads = 8;
  int dim = 128;
  int v_dim = 0;  ///< 0: equal to `dim`
  std::string dtype = "bfloat16";
  int page_size = 16;
  std::int64_t batch = 1;
  std::int64_t context = 131072;
  int gpus = 1;
  int nodes = 1;
  double gpu_gib = 141;    ///< memory of one GPU
  double weights_gib = 0;  ///< the part of it that is not for pages
};

/// Adds the options to the subcommand.
void add_capacity_options(CLI::App& command, CapacityOptions& options);

/// Starts no rank and needs no GPU: all is computed. Writes a report to standard output, and as
/// JSON to `json` ("-": standard output, and nothing else there) if that is not empty. Returns the
/// exit status: 0, or 1 if the batch does not fit.
/// @throws InvalidArgument for a size that makes no sense, ModelError.
int run_plan_capacity(const CapacityOptions& options, const std::string& json, Output& out);

}  // namespace kvmesh::launch
