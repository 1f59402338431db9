// Cases of attention over float8 pages.
#pragma once

#include <utility>
#include <vector>

#include "tests/support/attention_case.hpp"

namespace kvmesh::test {

inline constexpr KvScales kScaleNumbers{.kind = ScaleKind::kPerTensor, .k = 0.0025f, .v = 0.003f};
/// Scales per token and head, and those numbers.
inline constexpr KvScales kBothScales[] = {{}, kScaleNumbers};

inline CaseSpec float8_case(const AttentionShape& shape, const KvScales& scales,
                            std::vector<CaseSequence> sequences, bool latent = false) {
  CaseSpec spec{
      .shape = shape, .dtype = Dtype::kFloat8E4M3, .q_dtype = Dtype::kBFloat16, .latent = latent};
  spec.scales = scales;
  spec.sequences = std::move(sequences);
  return spec;
}

}  // namespace kvmesh::test
