// The statistics of public traces of serving: lengths, and how requests share their beginnings.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

namespace kvmesh::replay {

/// The quantiles that summarise a trace.
inline constexpr std::array kQuantiles{0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0};
using Quantiles = std::array<double, kQuantiles.size()>;

/// How requests begin as earlier ones did.
struct Sharing {
  double continues = 0;    ///< the part of the requests that go on from more than the common block
  double has_common = 0;   ///< the part of the others that begin with one block, common to all
  Quantiles prompt;        ///< tokens of those that continue
  Quantiles other_prompt;  ///< tokens of those that do not
  Quantiles requests_ago;  ///< the earlier request
  Quantiles part;          ///< of the request's blocks that it shares
};

struct Statistics {
  const char* name;
  Quantiles prompt;  ///< tokens
  Quantiles answer;  ///< tokens
  std::int64_t requests = 0;
  double seconds = 0;  ///< from the first request to the last
  Sharing sharing{};
};

/// Statistics of Azure/AzurePublicDataset, LLM inference 2023, which has lengths alone, and of
/// kvcache-ai/Mooncake, FAST25 release.
inline constexpr std::array kTraces{
    Statistics{"azure-code",
               {3, 17, 75, 147, 578, 1469, 2745, 5186, 7302, 7436, 7437},
               {6, 6, 6, 7, 9, 13, 24, 55, 90, 252, 1899},
               8819,
               3436},
    Statistics{"azure-conversation",
               {2, 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 14050},
               {7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000},
               19366,
               3502},
    Statistics{"conversation",
               {891, 894, 901, 964, 2307, 6909, 15368, 27367, 39552, 85401, 126195},
               {1, 3, 10, 24, 157, 350, 472, 597, 698, 1120, 2000},
               12031,
               3537,
               {0.387,
                1.0,
                {892, 1147, 1627, 2101, 4530, 9872, 17651, 28885, 40992, 79096, 123194},
                {891, 894, 897, 905, 1336, 5264, 13056, 25553, 38464, 89867, 126195},
                {5, 44, 99, 141, 229, 422, 901, 1660, 2129, 5101, 10514},
                {0.015, 0.058, 0.143, 0.286, 0.524, 0.8, 0.931, 0.971, 0.983, 1.0, 1.0}}},
    Statistics{"synthetic",
               {13, 16, 22, 30, 277, 11587, 23175, 38615, 48835, 66456, 191378},
               {1, 2, 2, 4, 11, 69, 250, 389, 519, 768, 893},
               3993,
               1022,
               {0.438,
                0.015,
                {1345, 2511, 2829, 3685, 7724, 18115, 35435, 45734, 54977, 66767, 191378},
                {13, 13, 19, 23, 41, 565, 16412, 26854, 36978, 55173, 191374},
                {1, 3, 11, 23, 82, 258, 636, 1149, 1562, 2317, 3044},
                {0.5, 0.8, 0.833, 0.875, 0.944, 0.97, 0.986, 1.0, 1.0, 1.0, 1.0}}}};

/// A number, interpolated between the quantiles on a logarithmic scale.
inline double draw_real(const Quantiles& quantiles, std::mt19937_64& random) {
  const double u = static_cast<double>(random() >> 11) * 0x1p-53;
  std::size_t i = 1;
  while (kQuantiles[i] < u) ++i;
  const double part = (u - kQuantiles[i - 1]) / (kQuantiles[i] - kQuantiles[i - 1]);
  return quantiles[i - 1] * std::pow(quantiles[i] / quantiles[i - 1], part);
}
inline std::int64_t draw(const Quantiles& quantiles, std::mt19937_64& random) {
  return std::llround(draw_real(quantiles, random));
}

}  // namespace kvmesh::replay
