// Lengths of requests with the statistics of public traces of serving.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

namespace kvmesh::test {

/// The quantiles that summarise a trace.
inline constexpr std::array kQuantiles{0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0};
using Quantiles = std::array<double, kQuantiles.size()>;

/// Tokens of prompts and of answers, from Azure/AzurePublicDataset, LLM inference 2023 (8,819 and
/// 19,366 requests), and from kvcache-ai/Mooncake, FAST25 release (12,031 and 3,993).
struct Trace {
  const char* name;
  Quantiles prompt;
  Quantiles answer;
};

inline constexpr std::array kTraces{
    Trace{"Azure code",
          {3, 17, 75, 147, 578, 1469, 2745, 5186, 7302, 7436, 7437},
          {6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 1899}},
    Trace{"Azure conversation",
          {2, 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 14050},
          {7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000}},
    Trace{"Mooncake conversation",
          {891, 894, 901, 964, 2307, 6909, 15368, 27367, 39552, 85401, 126195},
          {1, 3, 10, 24, 157, 350, 472, 597, 698, 1120, 2000}},
    Trace{"Mooncake synthetic",
          {13, 16, 22, 30, 277, 11587, 23175, 38615, 48835, 66456, 191378},
          {1, 2, 2, 4, 11, 69, 250, 389, 519, 768, 893}}};

/// A length, interpolated between the quantiles on a logarithmic scale.
inline std::int64_t draw(const Quantiles& lengths, std::mt19937_64& random) {
  const double u = static_cast<double>(random() >> 11) * 0x1p-53;
  std::size_t i = 1;
  while (kQuantiles[i] < u) ++i;
  const double part = (u - kQuantiles[i - 1]) / (kQuantiles[i] - kQuantiles[i - 1]);
  return std::llround(lengths[i - 1] * std::pow(lengths[i] / lengths[i - 1], part));
}

}  // namespace kvmesh::test
