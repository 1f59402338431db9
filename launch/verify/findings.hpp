// What a comparison with float64 found.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kvmesh/tensor.hpp"

namespace kvmesh::verify {

/// How far float32 arithmetic may be from float64 where |v| <= 1: an output is a weighted mean of
/// values, each wrong by a few units of 2^-24 times the terms of a dot product. Relative to numbers
/// above 1, as an LSE may be. Measured: about a fifth of this.
inline constexpr double kTolerance = 1e-5;

/// The same for a cache of `pool` pages on `device`. A GPU's tensor cores take weights in the
/// pool's type, each off by up to half a unit of its 8 or 11 bits; queries of another type are
/// rounded likewise, which moves the scores.
double arithmetic_tolerance(Device device, Dtype pool, Dtype queries);

class Findings {
 public:
  /// For the comparisons from now on.
  void set_tolerance(double tolerance) { tolerance_ = tolerance; }

  /// Compares one number; `where` is called for its name if it is wrong.
  template <class Where>
  void compare(double got, double want, Dtype dtype, const Where& where) {
    if (got == want) return;  // also infinities
    const double error = got < want ? want - got : got - want;
    // Against an infinity nothing but itself is right, and a NaN is less than no bound.
    if (std::isfinite(want) && error <= bound(want, dtype)) {
      if (dtype == Dtype::kFloat32) {
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
  /// The first few.
  const std::vector<std::string>& messages() const { return messages_; }
  /// Rows compared with float64 on this rank.
  std::int64_t rows() const { return rows_; }
  /// Of float32 numbers that were right; relative to those above 1.
  double max_error() const { return max_error_; }

 private:
  /// How far a right result may be from `want` once it is stored as `dtype`.
  double bound(double want, Dtype dtype) const;
  void fail_number(const std::string& where, double got, double want);

  double tolerance_ = kTolerance;
  std::int64_t failed_ = 0;
  std::int64_t rows_ = 0;
  double max_error_ = 0;
  std::vector<std::string> messages_;
};

}  // namespace kvmesh::verify
