// Rows of a replay's attention, compared with float64.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "launch/replay/contents.hpp"
#include "launch/verify/findings.hpp"

namespace kvmesh::replay {

/// Returns the scale of queries for kernels of these tolerances.
///
/// Plain queries give thousands of keys about the same weight. In float32 the mean of their values
/// shows a single wrong one. Where weights are rounded to 16 bits, the mean is as small as the
/// tolerance. There a query is a multiple of one of its sequence's keys: its score is about 16
/// where the others' are within a few of 0, and the output is about that key's value. The scale is
/// the power of two next to 48 / sqrt(dim): scores are q k / sqrt(dim), and k k is dim / 3 on
/// average.
float query_scale(const verify::Tolerances& tolerances, int dim);

/// Compares one row at a time, and keeps the findings.
class RowCheck {
 public:
  RowCheck(const Contents& contents, const AttendShape& shape, const verify::Tolerances& tolerances)
      : contents_(contents), shape_(shape), tolerances_(tolerances) {}

  /// A row of the output: of the query at the last of the sequence's tokens.
  struct Row {
    std::span<const TokenRow> tokens;  ///< of the whole sequence
    int layer = 0;
    int head = 0;                ///< query head
    std::size_t query = 0;       ///< row of Contents
    std::span<const float> o{};  ///< [dim]
  };
  /// `place` is called for the name of the row if a number is wrong.
  void compare(const Row& row, const std::function<std::string()>& place);

  const verify::Findings& findings() const { return findings_; }

 private:
  const Contents& contents_;
  AttendShape shape_;
  verify::Tolerances tolerances_;
  verify::Findings findings_;
};

}  // namespace kvmesh::replay
