// Combines exact rows: reproducible mode's combine, over the ranks' communicator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "comm/combine/host/host_plan.hpp"
#include "comm/combine/host/row_exchange.hpp"
#include "core/numbers/exact_rows.hpp"

namespace kvmesh {

/// Planned once per step, run once per layer, as a CombineWay is. Every row goes to its owner as
/// integers, which the owner adds; only then is it rounded, so the order and the number of ranks do
/// not change the result. Bytes: 32 + 16 * dim per row, where the host's way sends 4 + 4 * dim.
/// With Scatter::kAll the finished rows go to all ranks in a second step. One thread.
class ExactCombine {
 public:
  explicit ExactCombine(std::shared_ptr<RowExchange> rows) : rows_(std::move(rows)) {}

  /// Keeps a copy of the mask. Sends nothing; `digest` travels with the rows, and peers compare it.
  /// It accepts any strategy of the host's way; they make no difference. @throws InvalidArgument,
  /// with the last plan still valid.
  void plan(const CombineShape& shape, const CombineOptions& options, const PlanDigest& digest);
  /// REQUIRES: a plan. @throws InvalidArgument unless `output` has this rank's rows.
  void check_run(const CombineOutput& output) const;
  /// Merges the ranks' `mine` [tokens, heads] and writes this rank's rows, with `sinks` [heads] in
  /// them unless that is null.
  /// @throws InvalidArgument before anything is sent; DigestMismatch, Timeout, PeerLost.
  /// Collective.
  void run(const ExactRows& mine, const CombineOutput& output, const float* sinks = nullptr);

  std::size_t workspace_bytes() const { return rows_->size_bytes() + merged_.size(); }

 private:
  void exchange(const ExactRows& mine);
  void finish(const ExactRows& mine, const CombineOutput& output, const float* sinks);
  void merge(const ExactRows& mine, std::int64_t token, std::int64_t head, const ExactRow& merged);

  std::shared_ptr<RowExchange> rows_;
  std::optional<HostPlan> plan_;
  std::vector<std::byte> merged_;   // one row
  std::vector<float> finished_;     // one row
  std::vector<std::int64_t> next_;  // [rank]: its row that is merged next
};

}  // namespace kvmesh
