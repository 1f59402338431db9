// The options in docs/models.md, a test per line of its table: models of each shape against
// float64.
#pragma once

#include "launch/verify/checked_cache.hpp"
#include "tests/contracts/places.hpp"

namespace kvmesh::test {

/// The tests are in models_contract.cpp, compiled once for all programs that instantiate them.
class Models : public testing::TestWithParam<Place> {
 protected:
  /// On the CPU small; on a GPU with the head dims of the models, whose kernels then run.
  struct Sizes {
    Dtype dtype = Dtype::kFloat32;
    int page_size = 4;
    int dim = 16, gemma_dim = 32, small_dim = 16;
    int latent_heads = 16, latent_dim = 72, latent_v_dim = 64;
  };
  static Sizes sizes();

  static CacheOptions model(int layers, int q_heads, int kv_heads, int dim);
  /// Two prompts, in chunks; tokens one by one; a fork.
  static void serve(const CacheOptions& cache_options, const verify::StepOptions& options);
};

}  // namespace kvmesh::test
