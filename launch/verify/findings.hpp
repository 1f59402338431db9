// The results of a comparison with float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kvmesh/tensor.hpp"

namespace kvmesh::verify {

/// The distance of float32 arithmetic from float64 where |q|, |k|, |v| <= 1 and scores are scaled
/// by little more than 1 / sqrt(dims): an output is a weighted mean of values, each wrong by a few
/// units of 2^-24 times the terms of a dot product. Relative to numbers above 1, which an LSE may
/// be. Measured: about a fifth of this.
///
/// An LSE is off by the mean of its scores' errors, weighted as the values are, and by those of the
/// sum of n weights. Each is some units of 2^-24 of the dot product's terms, of the score and of ln
/// n. Scores far below the highest, as ALiBi makes them, have no weight; those that have some lie
/// within ln n of the LSE. So it is relative to |LSE|, whatever a score mod makes of the scores.
inline constexpr double kTolerance = 1e-5;

/// Tolerances of outputs within [-1, 1], and of an LSE; relative to numbers above 1.
struct Tolerances {
  double o = kTolerance;
  double lse = kTolerance;
};

/// Tolerances for a cache of `pool` pages on `device`. A GPU's tensor cores take weights in the
/// pool's type, or in float16 over float8 pages, each off by up to half a unit of its 8 or 11 bits;
/// O is off by the same. The LSE is not: its weights are summed before, in float32, and products of
/// 16-bit numbers are exact there.
Tolerances arithmetic_tolerances(Device device, Dtype pool);

/// The type that attention may round queries to: tensor cores round them to that of the weights,
/// other kernels do not round. Both results are right. Their distance is measured: the same row is
/// computed with rounded queries. (At most scale * sum |q k| halves of a unit, far less where many
/// keys have weight.)
Dtype rounded_query_type(Device device, Dtype pool, Dtype queries);

/// The largest difference between a right number and the expected one.
struct Bound {
  double tolerance = kTolerance;  ///< tolerance of the arithmetic; relative to numbers above 1
  double spread = 0;              ///< distance of the right answers, if there are two
  Dtype dtype = Dtype::kFloat32;  ///< type in which it is stored

  double around(double want) const;
};

class Findings {
 public:
  /// Compares one number; `where` is called for its name if it is wrong.
  template <class Where>
  void compare(double got, double want, const Bound& bound, const Where& where) {
    if (got == want) return;  // also infinities
    const double error = got < want ? want - got : got - want;
    // Only an infinity equals an infinity, and a comparison with NaN is false.
    if (std::isfinite(want) && error <= bound.around(want)) {
      if (bound.dtype == Dtype::kFloat32) {
        max_error_ = std::max(max_error_, error / std::max(1.0, std::abs(want)));
      }
      return;
    }
    fail_number(where(), got, want);
  }
  void fail(const std::string& message);
  void add_rows(std::int64_t rows) { rows_ += rows; }

  bool good() const { return failed_ == 0; }
  std::int64_t failed() const { return failed_; }
  /// The first few findings.
  const std::vector<std::string>& messages() const { return messages_; }
  /// Rows compared with float64 on this rank.
  std::int64_t rows() const { return rows_; }
  /// Largest error of the float32 numbers that were right; relative to numbers above 1.
  double max_error() const { return max_error_; }

 private:
  void fail_number(const std::string& where, double got, double want);

  std::int64_t failed_ = 0;
  std::int64_t rows_ = 0;
  double max_error_ = 0;
  std::vector<std::string> messages_;
};

}  // namespace kvmesh::verify
