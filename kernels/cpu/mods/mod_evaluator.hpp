// Runs a mod's graph on the CPU, a tile of keys at a time.
#pragma once

#include <hwy/aligned_allocator.h>
#include <cstdint>
#include <vector>

#include "kernels/cpu/mods/mod_vector_ops.hpp"
#include "kernels/mods/graph.hpp"
#include "kernels/mods/scalar.hpp"

namespace kvmesh {

/// Runs one graph for one thread. A node that depends on score or kv is a vector operation over the
/// tile; any other is computed once per call. REQUIRES: the graph outlives the evaluator.
class ModEvaluator {
 public:
  explicit ModEvaluator(const ModGraph& graph);

  /// scores[i] = mod(scores[i], b, h, q, kv[i]) for i in [0, count). The graph's result is float32.
  void score(float* scores, const std::int32_t* kv, int count, std::int32_t b, std::int32_t h,
             std::int32_t q);

  /// visible[i] = mod(b, h, q, kv[i]) ? 1 : 0. The graph's result is a bool.
  void mask(std::uint8_t* visible, const std::int32_t* kv, int count, std::int32_t b,
            std::int32_t h, std::int32_t q);

 private:
  void plan_node(std::int32_t index);
  void compute_uniform(const ModPoint& point);
  void run(float* scores, const std::int32_t* kv, int count);

  const ModGraph* graph_;
  bool wide_root_;
  std::int32_t score_slot_ = -1;  ///< the node of the score, if the graph has one
  std::int32_t kv_slot_ = -1;
  std::vector<std::int32_t> uniform_;    ///< nodes that are computed once per call
  std::vector<std::int32_t> broadcast_;  ///< uniform nodes that a vector operation reads
  std::vector<ModBits> values_;          ///< values of the uniform nodes, by node
  std::vector<VectorOp> program_;
  std::vector<std::uint32_t*> slots_;  ///< each node's tile, by node
  hwy::AlignedFreeUniquePtr<std::uint32_t[]> memory_;
  std::uint32_t* padded_scores_ = nullptr;
  std::uint32_t* padded_kv_ = nullptr;
};

}  // namespace kvmesh
