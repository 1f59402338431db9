// The query gather: each rank of a group has computed the queries of a share of the heads, and gets
// those of all heads. Its ways are those of the combine that need no step within hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "comm/combine/plan_digest.hpp"
#include "core/pod/combine_target.hpp"
#include "kvmesh/combine.hpp"
#include "kvmesh/device_group.hpp"

namespace kvmesh {

class RowExchange;

inline constexpr std::string_view kGatherQueries = "gather_queries";

/// The tensors of one gather. Rank r has the heads share_of(heads, r, ranks).
struct QueryShares {
  ConstTensorView mine{};  ///< [tokens, heads of this rank, dim]; may be their place in `all`
  TensorView all{};        ///< [tokens, heads, dim], of the same dtype
  /// How many tokens the batch has. The tensors may have room for more; the rows past the batch's
  /// are unspecified.
  std::int64_t tokens = 0;
  /// The same number on the GPU, where a replayed graph reads that of the batch that was planned
  /// last. Null: the tensors have room for no more tokens than the batch has.
  const std::int32_t* planned_tokens = nullptr;
  PlanDigest digest{};  ///< of the plan

  IndexRange heads_of(int rank, int ranks) const { return share_of(all.size(1), rank, ranks); }
  /// The place of some heads in `all`.
  TensorView place_of(IndexRange heads) const;
  /// Copies this rank's heads to their place, unless they are there. On a GPU on `stream`.
  void place_mine(IndexRange heads, Stream stream) const;
  /// The same tensors without the rows past the batch's.
  QueryShares of_batch() const;
};

/// A way of the gather for one rank. The group outlives it. One thread and one stream use it at a
/// time.
class GatherWay {
 public:
  virtual ~GatherWay() = default;
  /// As CombineWay::set_layer.
  virtual void set_layer(int) {}
  /// Gathers on `stream`; on the CPU the work is done when it returns. REQUIRES: the tensors are on
  /// the group's device, of the shapes above, and have rows; the last dimension is contiguous.
  /// @throws as CombineWay::run. Collective.
  virtual void run(const QueryShares& queries, Stream stream) = 0;
  /// Changes when graphs that captured a run become invalid.
  virtual std::uint64_t generation() const { return 0; }
  virtual std::size_t workspace_bytes() const { return 0; }
  virtual std::size_t host_bytes() const { return 0; }
};

std::unique_ptr<GatherWay> make_host_gather(std::shared_ptr<RowExchange> rows);
/// Copies the shares to the host, gathers there, and copies the result back.
std::unique_ptr<GatherWay> make_staged_gather(DeviceGroup& group,
                                              std::shared_ptr<RowExchange> rows);
/// One group of messages, which are copied to their heads' places. @throws Unsupported in a build
/// without NCCL.
std::unique_ptr<GatherWay> make_nccl_gather(NcclGroup& group);
/// One kernel: peer/kernels/peer_gather_kernels.cu. `form`: how rows travel, whatever is faster.
/// A run REQUIRES that choose_gather_way has taken kPeer for it. @throws Unsupported in a build
/// without CUDA.
std::unique_ptr<GatherWay> make_peer_gather(PeerWindow& window, std::optional<RowForm> form = {});

}  // namespace kvmesh
