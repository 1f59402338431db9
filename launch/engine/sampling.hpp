// Choosing the next token from the logits.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "launch/engine/text/tokenizer.hpp"

namespace kvmesh::engine {

/// Returns the token with the largest logit; of equal ones, the lowest. NaN is never the largest.
Token argmax(std::span<const float> logits);

struct SamplingOptions {
  double temperature = 0.0;  ///< 0: always the largest logit; the rest is then unused.
  int top_k = 0;             ///< Keep the k largest; 0: all.
  double top_p = 1.0;        ///< Then keep the fewest whose probabilities sum to this at least.
  std::uint64_t seed = 0;
};

/// Every rank that holds the same logits and seed picks the same tokens. The random numbers are the
/// same on every platform; ties in a cut are kept in order of the token's id.
class Sampler {
 public:
  /// @throws InvalidArgument unless temperature >= 0, top_k >= 0, 0 < top_p <= 1.
  explicit Sampler(const SamplingOptions& options);

  Token pick(std::span<const float> logits);

 private:
  double uniform();  // in [0, 1)
  void keep_top(std::span<const float> logits);

  SamplingOptions options_;
  std::mt19937_64 random_;  // its sequence is fixed by the C++ standard
  std::vector<Token> candidates_;
  std::vector<double> weights_;
};

}  // namespace kvmesh::engine
