// Exact rows of attention cases, for the tests of every device.
#pragma once

#include <cstdint>
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

}  // namespace kvmesh::test
