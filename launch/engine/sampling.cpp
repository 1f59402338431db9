#include "launch/engine/sampling.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kvmesh/error.hpp"

namespace kvmesh::engine {

Token argmax(std::span<const float> logits) {
  Token best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > largest) {
      largest = logits[i];
      best = static_cast<Token>(i);
    }
  }
  return best;
}

Sampler::Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {
  const bool valid = options.temperature >= 0.0 && options.top_k >= 0 && options.top_p > 0.0 &&
                     options.top_p <= 1.0;
  if (!valid) {
    throw InvalidArgument(
        fmt::format("temperature {}, top-k {}, top-p {}: needed are temperature "
                    ">= 0, top-k >= 0 and 0 < top-p <= 1",
                    options.temperature, options.top_k, options.top_p));
  }
}

Token Sampler::pick(std::span<const float> logits) {
  if (options_.temperature == 0.0) return argmax(logits);
  keep_top(logits);
  weights_.clear();
  const auto logit = [&](Token token) {
    return static_cast<double>(logits[static_cast<std::size_t>(token)]);
  };
  double sum = 0.0;
  for (Token token : candidates_) {
    weights_.push_back(std::exp((logit(token) - logit(candidates_[0])) / options_.temperature));
    sum += weights_.back();
  }
  double kept = 0.0;
  std::size_t count = 0;
  while (count < weights_.size() && (count == 0 || kept < options_.top_p * sum)) {
    kept += weights_[count++];
  }
  double at = uniform() * kept;
  for (std::size_t i = 0; i + 1 < count; ++i) {
    at -= weights_[i];
    if (at < 0.0) return candidates_[i];
  }
  return candidates_[count - 1];
}

/// Fills `candidates_` with the top_k largest (all if 0), the largest first.
void Sampler::keep_top(std::span<const float> logits) {
  candidates_.resize(logits.size());
  std::iota(candidates_.begin(), candidates_.end(), Token{0});
  // NaN counts as -inf: the order stays strict, and its weight is never more than another's.
  const auto value = [&](Token token) {
    const float logit = logits[static_cast<std::size_t>(token)];
    return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
  };
  const auto before = [&](Token a, Token b) {
    return value(a) != value(b) ? value(a) > value(b) : a < b;
  };
  const auto wanted = static_cast<std::size_t>(options_.top_k);
  if (wanted == 0 || wanted >= candidates_.size()) {
    std::ranges::sort(candidates_, before);
    return;
  }
  const auto end = candidates_.begin() + options_.top_k;
  std::partial_sort(candidates_.begin(), end, candidates_.end(), before);
  candidates_.erase(end, candidates_.end());
}

double Sampler::uniform() {
  // The top 53 bits: every double of this spacing in [0, 1), equally likely.
  return static_cast<double>(random_() >> 11) * 0x1p-53;
}

}  // namespace kvmesh::engine
