// The combine of a reproducible step on GPUs, of several ranks.
#pragma once

#include <memory>

#include "comm/combine/host/row_exchange.hpp"
#include "comm/combine/nccl/planned_rows.hpp"
#include "kernels/cuda/attend/exact/exact_merge.hpp"
#include "kvmesh/attention.hpp"
#include "kvmesh/mesh.hpp"

namespace kvmesh {

struct ExactCombineOptions {
  AttentionShape shape;
  CombineOptions combine;  ///< without participation
  bool has_limits = false;
};

/// Planned once per step, run once per layer. Attention leaves its rows on the device, in the
/// messages to their owners. These go over NCCL; or, where the ranks have no NCCL group or
/// WayKind::kStaged is requested, by way of the host. Then each owner adds its rows and rounds
/// them. Memory grows, and never shrinks.
///
/// With limits, over NCCL, every rank takes part in every row, and every rank gets the rows of
/// Scatter::kOwner: so the messages of a captured run suit all later steps.
class CudaExactCombine {
 public:
  /// `host_rows` is over the kv axis. REQUIRES: mesh and kernels outlive it.
  /// @throws InvalidArgument for a strategy that the host's way does not have.
  CudaExactCombine(Mesh& mesh, cuda::KernelStore& kernels, std::shared_ptr<RowExchange> host_rows,
                   const ExactCombineOptions& options);

  /// Returns whether a plan follows which ranks hold keys of which query.
  bool follows_mask() const { return by_host_ || !has_limits_; }
  /// `tokens` is the number of tokens that tensors have room for; `mask` is of the batch's queries,
  /// and read only if follows_mask(). Uploads are ordered on `stream`.
  void plan(std::int64_t tokens, const Participation* mask, const PlanDigest& digest,
            Stream stream);
  /// REQUIRES: a plan, as for all that follows. @throws InvalidArgument.
  void check_run(const CombineOutput& output) const;
  /// The place where attention puts the rows of the next run.
  cuda::ExactMessages messages() const { return {rows_.memory().send_buffer, rows_.places()}; }
  /// `sinks` [q_heads] may be null. Over NCCL it waits for nothing and may be captured in a graph;
  /// by way of the host it waits for the stream and for the other ranks.
  /// @throws Timeout, NcclError; by way of the host DigestMismatch, PeerLost, and Unsupported while
  /// the stream is being captured. Collective over the kv axis.
  void run(const CombineOutput& output, const float* sinks, Stream stream);

  /// As in CombineWay.
  std::uint64_t generation() const { return rows_.generation(); }
  std::size_t workspace_bytes() const { return rows_.workspace_bytes(); }
  std::size_t host_bytes() const { return by_host_ ? host_rows_->size_bytes() : 0; }

 private:
  void exchange_by_host(Stream stream);

  Mesh& mesh_;
  std::shared_ptr<RowExchange> host_rows_;
  CombineOptions options_;
  AttentionShape shape_;
  bool has_limits_;
  bool by_host_;
  PlanDigest digest_;
  PlannedRows rows_;
  cuda::ExactRankMerge merge_;
};

}  // namespace kvmesh
