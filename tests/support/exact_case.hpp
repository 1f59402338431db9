// Exact rows of attention cases, for the tests of every device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/numbers/exact_rows.hpp"
#include "tests/support/attention_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {

/// The exact rows of a case, poisoned until they are computed.
class ExactResult {
 public:
  ExactResult(const AttentionShape& shape, std::int64_t tokens)
      : shape_(shape),
        rows_(tokens * shape.q_heads),
        memory_(static_cast<std::size_t>(rows_ * ExactRows::row_bytes(shape.v_dim)) / 8, -1) {}

  std::size_t size_bytes() const { return memory_.size() * sizeof(std::int64_t); }
  ExactRows rows() { return {memory_.data(), shape_.v_dim}; }
  void merge(ExactResult& other) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      merge_row(rows().row(row), other.rows().row(row), rows().dim());
    }
  }
  void finish(const Partial& out) {
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t token = row / shape_.q_heads, head = row % shape_.q_heads;
      float* o = static_cast<float*>(out.o.data) + token * out.o.stride(0) + head * out.o.stride(1);
      static_cast<float*>(out.lse.data)[token * out.lse.stride(0) + head * out.lse.stride(1)] =
          finish_row(rows().row(row), o, shape_.v_dim);
    }
  }
  friend bool operator==(const ExactResult& a, const ExactResult& b) {
    return a.memory_ == b.memory_;
  }

 private:
  AttentionShape shape_;
  std::int64_t rows_;
  std::vector<std::int64_t> memory_;
};

inline CaseResult finished(AttentionCase& c, ExactResult result) {
  CaseResult out = c.outputs();
  result.finish(c.partial(out));
  return out;
}

inline CaseSpec three_sequences(int page_size, Dtype dtype) {
  CaseSpec spec{.shape = {6, 2, 40, 24, page_size}, .dtype = dtype};
  spec.sequences = {
      {.q_len = 9, .kv_len = 333}, {.q_len = 2, .kv_len = 4}, {.q_len = 1, .kv_len = 2200}};
  spec.options.mask = mods::mask_and(mods::causal(), [](auto, auto h, auto q, auto kv) {
    return q - kv < 40 || (kv + h) % 2 == 0;
  });
  spec.options.score = mods::soft_cap(9.0f);
  return spec;
}

/// The pages of `batch`, dealt to ranks at random.
inline std::vector<AttentionBatch> dealt(const AttentionBatch& batch, int ranks, Random& random) {
  std::vector<AttentionBatch> all(static_cast<std::size_t>(ranks), batch);
  for (AttentionBatch& mine : all) {
    mine.pages.clear();
    mine.page_indptr = {0};
  }
  for (std::size_t s = 0; s < batch.kv_lens.size(); ++s) {
    for (std::int64_t i = batch.page_indptr[s]; i < batch.page_indptr[s + 1]; ++i) {
      const auto rank = static_cast<std::size_t>(random.integer(0, ranks - 1));
      all[rank].pages.push_back(batch.pages[static_cast<std::size_t>(i)]);
    }
    for (AttentionBatch& mine : all) mine.page_indptr.push_back(std::ssize(mine.pages));
  }
  return all;
}

/// A device's exact rows of a case for some of its pages.
using ComputeRows = std::function<ExactResult(AttentionCase&, const AttentionBatch&)>;
/// A device's outputs of a case.
using ComputeOutputs = std::function<CaseResult(AttentionCase&)>;

inline void expect_bits_of_any_placement(const ComputeRows& compute) {
  Random random(seed_or(11));
  for (const int page_size : {5, 16}) {
    AttentionCase c(three_sequences(page_size, Dtype::kBFloat16));
    const ExactResult whole = compute(c, c.batch());
    for (const int ranks : {2, 3, 8}) {
      std::vector<ExactResult> parts;
      for (const AttentionBatch& mine : dealt(c.batch(), ranks, random)) {
        parts.push_back(compute(c, mine));
      }
      std::ranges::reverse(parts);
      for (int i = 1; i < ranks; ++i) parts[0].merge(parts[static_cast<std::size_t>(i)]);
      EXPECT_EQ(parts[0], whole) << ranks << " ranks, pages of " << page_size;
    }
  }
}

/// Expects NaN in the rows that see a poisoned key or value, and in no others.
inline void expect_nan_stays_in_its_row(const ComputeOutputs& compute) {
  for (const bool in_key : {true, false}) {
    CaseSpec spec = three_sequences(16, Dtype::kFloat16);
    spec.options.score = {};
    spec.options.mask = mods::sliding_window(3);
    AttentionCase c(spec);
    in_key ? c.poison_key(0, 328) : c.poison_value(0, 328);
    const auto sees = [&](std::int64_t token, std::int32_t) {
      return token < 9 && c.position_of(0, token) >= 328 && c.position_of(0, token) < 331;
    };
    EXPECT_TRUE(c.matches(compute(c), sees)) << (in_key ? "key" : "value");
  }
}

/// Scores far beyond the exponents of a float32, and weights that make all others 0.
inline void expect_scores_of_any_size(Dtype dtype, const ComputeOutputs& compute) {
  for (const float size : {80.0f, 3000.0f, 1e6f, 1e9f, 1e30f}) {
    CaseSpec spec{.shape = {2, 1, 16, 16, 16}, .dtype = dtype};
    spec.sequences = {{.q_len = 3, .kv_len = 90}};
    spec.options.mask = mods::causal();
    // Every third key wins; or all are equal, and far below 0.
    spec.options.score = ScoreMod([size](auto, auto, auto h, auto, auto kv) {
      return where(h == 0, where(kv % 3 == 0, size, 0.0f), -size);
    });
    AttentionCase c(spec);
    EXPECT_TRUE(c.matches(compute(c))) << size;
  }
}

}  // namespace kvmesh::test
