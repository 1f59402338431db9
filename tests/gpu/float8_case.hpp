// Cases of attention over float8 pages.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/attention_case.hpp"

namespace kvmesh::test {

/// Scales for `kv_heads` heads; those of heads are far apart.
inline KvScales scales_for(ScaleKind kind, int kv_heads) {
  KvScales scales{.kind = kind};
  if (kind == ScaleKind::kPerTensor) {
    scales.k = 0.0025f;
    scales.v = 0.003f;
  }
  if (kind != ScaleKind::kPerHead) return scales;
  for (int head = 0; head < kv_heads; ++head) {
    scales.k_heads.push_back(0.0025f * static_cast<float>(1 + head % 3));
    scales.v_heads.push_back(head % 2 == 0 ? 0.003f : 0.09f);
  }
  return scales;
}

inline constexpr ScaleKind kRowScales = ScaleKind::kPerTokenAndHead;
inline constexpr ScaleKind kEachScales[] = {kRowScales, ScaleKind::kPerTensor, ScaleKind::kPerHead};

inline std::string test_name(ScaleKind kind) {
  return kind == ScaleKind::kPerTensor ? "Numbers" : kind == ScaleKind::kPerHead ? "Heads" : "Rows";
}

inline CaseSpec float8_case(const AttentionShape& shape, ScaleKind scales,
                            std::vector<CaseSequence> sequences, bool latent = false) {
  CaseSpec spec{
      .shape = shape, .dtype = Dtype::kFloat8E4M3, .q_dtype = Dtype::kBFloat16, .latent = latent};
  spec.scales = scales_for(scales, shape.kv_heads);
  spec.sequences = std::move(sequences);
  return spec;
}

/// A shape, and the queries of its longest sequences.
struct Float8Cut {
  AttentionShape shape;
  std::int64_t q_len;
};

inline std::string name_of_float8_cut(const testing::TestParamInfo<Float8Cut>& info) {
  const auto& [s, q_len] = info.param;
  return fmt::format("H{}Kv{}K{}V{}P{}Q{}", s.q_heads, s.kv_heads, s.k_dim, s.v_dim, s.page_size,
                     q_len);
}

/// Poisons one of the positions of the second sequence and expects NaN in the rows that see it,
/// under several masks, and in no others.
inline void expect_contained(CaseSpec spec,
                             void (AttentionCase::*poison)(std::size_t, std::int64_t),
                             std::span<const std::int32_t> positions) {
  for (const MaskMod& mask : {mods::no_mask(), mods::causal(), mods::sliding_window(20)}) {
    spec.options.mask = mask;
    for (const std::int32_t position : positions) {
      AttentionCase c(spec);
      (c.*poison)(1, position);
      const auto sees = [&](std::int64_t token, std::int32_t head) {
        return token >= spec.sequences.front().q_len &&
               mask(1, head, c.position_of(1, token), position);
      };
      EXPECT_TRUE(c.matches(c.run(), sees)) << "position " << position;
    }
  }
}

}  // namespace kvmesh::test
