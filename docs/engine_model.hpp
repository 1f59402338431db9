// A stand-in for a model, for engine_loop.cpp: layers of attention over invented numbers, on the
// mesh's device. A layer's output is the next one's input, so a step consists of runs alone; the
// kernels of a real model come between them, on the same stream. The next token depends on every
// bit of the attention's output.
#pragma once

#include <kvmesh/kvmesh.hpp>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

class Model {
 public:
  static constexpr int kLayers = 2, kHeads = 4, kKvHeads = 2, kDim = 16, kVocabulary = 61;
  static constexpr int kWidth = kHeads * kDim;

  Model(kvmesh::Device device, std::int64_t most_tokens) : device_(device) {
    for (kvmesh::DeviceMemory& memory : hidden_) {
      memory = {device, static_cast<std::size_t>(most_tokens) * kWidth * sizeof(float)};
    }
  }

  /// Writes the tokens' embeddings to where the first layer reads. REQUIRES: no step is running.
  void set_tokens(std::span<const std::int32_t> tokens) const {
    std::vector<float> numbers;
    for (std::int32_t token : tokens) {
      for (int i = 0; i < kWidth; ++i) numbers.push_back(embedding(token, i));
    }
    kvmesh::copy_bytes(hidden_[0].data(), numbers.data(), numbers.size() * sizeof(float));
  }

  /// Enqueues all layers of a planned step. Its tensors have the same addresses in every step.
  void run(kvmesh::StepPlan& step, kvmesh::Stream stream) const {
    const std::int64_t n = step.query_tokens();
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      // Keys are the first half of a token's numbers, values the second half.
      const float* const numbers = static_cast<const float*>(hidden_[layer].data());
      const auto rows = [&](const float* first, int heads) {
        return kvmesh::ConstTensorView(first, kvmesh::Dtype::kFloat32, {n, heads, kDim},
                                       {kWidth, kDim, 1}, device_);
      };
      step.run(
          static_cast<int>(layer),
          {.q = rows(numbers, kHeads),
           .k = rows(numbers, kKvHeads),
           .v = rows(numbers + kKvHeads * kDim, kKvHeads)},
          {.o = {hidden_[layer + 1].data(), kvmesh::Dtype::kFloat32, {n, kHeads, kDim}, device_}},
          stream);
    }
  }

  /// Returns the logits [tokens, kVocabulary] of what comes after each of the step's first tokens.
  /// REQUIRES: the step is done.
  std::vector<float> logits(std::size_t tokens) const {
    std::vector<float> hidden(tokens * kWidth), scores;
    kvmesh::copy_bytes(hidden.data(), hidden_[kLayers].data(), hidden.size() * sizeof(float));
    for (std::size_t row = 0; row < hidden.size(); row += kWidth) {
      for (std::int32_t token = 0; token < kVocabulary; ++token) {
        float sum = 0;
        for (int i = 0; i < kWidth; ++i)
          sum += hidden[row + static_cast<std::size_t>(i)] * embedding(token, i);
        scores.push_back(sum);
      }
    }
    return scores;
  }

 private:
  static float embedding(std::int32_t token, int i) {
    auto bits =
        static_cast<std::uint32_t>(token * 2654435761u) ^ static_cast<std::uint32_t>(i * 40503u);
    bits = (bits ^ (bits >> 15)) * 2246822519u;
    return static_cast<float>((bits ^ (bits >> 13)) % 2001) / 1000.0f - 1.0f;
  }

  kvmesh::Device device_;
  std::array<kvmesh::DeviceMemory, kLayers + 1> hidden_;  // of each layer's input, and the output
};
