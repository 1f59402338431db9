// Partials of rows that can be merged in any order and grouping without a change of a bit: what
// ranks exchange in reproducible mode instead of (O, LSE).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "core/pod/exact_row.hpp"
#include "core/pod/row_merge.hpp"

namespace kvmesh {

/// One row: the head, and for each element of the output the sum of exp(score) * value.
struct ExactRow {
  ExactRowHead* head;
  std::int64_t* high;  ///< [dim]
  std::int64_t* low;   ///< [dim]
};

/// Rows in memory of the caller's, 32 + 16 * dim bytes each, where `dim` is the output's dim
/// rounded up to whole vectors of 16. A row is plain bytes, at a multiple of 8: it may be copied
/// and sent.
class ExactRows {
 public:
  ExactRows() = default;
  ExactRows(void* data, int v_dim)
      : data_(static_cast<std::byte*>(data)), dim_(exact_row_dim(v_dim)) {}

  static constexpr std::int64_t row_bytes(int v_dim) { return exact_row_bytes(v_dim); }

  std::int64_t dim() const { return dim_; }
  std::int64_t row_bytes() const {
    return static_cast<std::int64_t>(sizeof(ExactRowHead)) + 16 * dim_;
  }
  std::byte* bytes(std::int64_t row) const { return data_ + row * row_bytes(); }
  ExactRow row(std::int64_t row) const {
    std::byte* at = bytes(row);
    auto* high = reinterpret_cast<std::int64_t*>(at + sizeof(ExactRowHead));
    return {reinterpret_cast<ExactRowHead*>(at), high, high + dim_};
  }

 private:
  std::byte* data_ = nullptr;
  std::int64_t dim_ = 0;
};

/// Makes the row that of no key.
void clear_row(const ExactRow& row, std::int64_t dim);

/// Brings the row's outputs to the top bin `bin` if theirs is lower.
void raise_outputs(const ExactRow& row, std::int64_t dim, std::int32_t bin);

/// A bound of a float32 by its bits: |x| < 2^bound_of(bits of |x|). REQUIRES: x is finite.
constexpr std::int32_t bound_of(std::int32_t magnitude_bits) {
  return (magnitude_bits >> 23) - 126;  // 1.0 has 127 there, and is below 2^1
}

/// Adds a weight, weight * 2^exponent, to the row's sum. REQUIRES: weight > 0, and finite.
inline void add_weight(ExactRowHead& head, float weight, std::int32_t exponent) {
  const std::int32_t bin = bin_of(exponent + bound_of(std::bit_cast<std::int32_t>(weight)));
  if (bin > head.sum_bin) {
    head.sum = raised(head.sum, head.sum_bin, bin);
    head.sum_bin = bin;
  }
  add_term(head.sum, head.sum_bin, weight, exponent, bin);
}

/// Adds the keys of `from` to `row`. Associative and commutative to the last bit.
void merge_row(const ExactRow& row, const ExactRow& from, std::int64_t dim);

/// Writes the row's output to `o` [v_dim] and returns its LSE. Without a key O = 0 and LSE = -inf.
/// An infinite value or a NaN that the row sees makes all of its O NaN; a NaN score O and LSE.
float finish_row(const ExactRow& row, float* o, int v_dim);

}  // namespace kvmesh
