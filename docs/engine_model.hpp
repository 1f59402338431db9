// A stand-in for a model, for engine_loop.cpp: two layers of attention over invented numbers. The
// next token depends on every bit of the attention's output.
#pragma once

#include <kvmesh/kvmesh.hpp>

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

class Model {
 public:
  static constexpr int kLayers = 2, kHeads = 4, kKvHeads = 2, kDim = 16, kVocabulary = 61;
  static constexpr int kWidth = kHeads * kDim;

  /// Runs a planned step, whose sequences append `tokens`, one after another. Returns the logits
  /// [tokens, kVocabulary] of what comes after each.
  std::vector<float> forward(kvmesh::StepPlan& step, std::span<const std::int32_t> tokens) const {
    const auto n = static_cast<std::int64_t>(tokens.size());
    std::vector<float> hidden, o(tokens.size() * kWidth);
    for (std::int32_t token : tokens) {
      for (int i = 0; i < kWidth; ++i) hidden.push_back(embedding(token, i));
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      // Keys are the first half of a token's numbers, values the second half.
      const float* const numbers = hidden.data();
      const auto half = [&](const float* first) {
        return kvmesh::ConstTensorView(first, kvmesh::Dtype::kFloat32, {n, kKvHeads, kDim},
                                       {kWidth, kDim, 1});
      };
      step.run(layer,
               {.q = kvmesh::tensor(numbers, {n, kHeads, kDim}),
                .k = half(numbers),
                .v = half(numbers + kKvHeads * kDim)},
               {.o = kvmesh::tensor(o.data(), {n, kHeads, kDim})});
      for (std::size_t i = 0; i < hidden.size(); ++i) {
        const std::size_t row = i / kWidth * kWidth;
        hidden[i] = std::tanh(hidden[i] + 2 * o[row + (7 * i + 3) % kWidth]);
      }
    }
    return logits(hidden);
  }

 private:
  static float embedding(std::int32_t token, int i) {
    auto bits =
        static_cast<std::uint32_t>(token * 2654435761u) ^ static_cast<std::uint32_t>(i * 40503u);
    bits = (bits ^ (bits >> 15)) * 2246822519u;
    return static_cast<float>((bits ^ (bits >> 13)) % 2001) / 1000.0f - 1.0f;
  }

  static std::vector<float> logits(const std::vector<float>& hidden) {
    std::vector<float> scores;
    for (std::size_t row = 0; row < hidden.size(); row += kWidth) {
      for (std::int32_t token = 0; token < kVocabulary; ++token) {
        float sum = 0;
        for (int i = 0; i < kWidth; ++i)
          sum += hidden[row + static_cast<std::size_t>(i)] * embedding(token, i);
        scores.push_back(sum / 8);
      }
    }
    return scores;
  }
};
