// The LSEs of rows by rank, and the merged LSEs and weights.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/combine/host/row_kernels.hpp"
#include "core/pod/row_merge.hpp"

namespace kvmesh {

class MergedLses {
 public:
  /// Makes room for `rows` rows of `ranks` ranks, all of them without keys.
  void reset(int ranks, std::int64_t rows) {
    ranks_ = ranks;
    stride_ = (rows + kRowLanes - 1) / kRowLanes * kRowLanes;
    lses_.assign(static_cast<std::size_t>(ranks * stride_), kNoKeys);
    weights_.resize(lses_.size());
    merged_.resize(static_cast<std::size_t>(stride_));
  }

  float& lse(int rank, std::int64_t row) { return lses_[at(rank, row)]; }

  /// Computes weights and merged LSEs of all rows.
  void merge() { merge_lses(lses_.data(), ranks_, stride_, weights_.data(), merged_.data()); }
  /// The share of a rank's row in the merged output.
  float weight(int rank, std::int64_t row) const { return weights_[at(rank, row)]; }
  float merged(std::int64_t row) const { return merged_[static_cast<std::size_t>(row)]; }

  std::size_t size_bytes() const {
    return (lses_.size() + weights_.size() + merged_.size()) * sizeof(float);
  }

 private:
  std::size_t at(int rank, std::int64_t row) const {
    return static_cast<std::size_t>(rank * stride_ + row);
  }

  int ranks_ = 0;
  std::int64_t stride_ = 0;  // rows, padded
  std::vector<float> lses_;  // [rank][stride]
  std::vector<float> weights_;
  std::vector<float> merged_;  // [stride]
};

}  // namespace kvmesh
