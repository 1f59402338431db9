// The sequences of a step, as the attention of every device takes them. How a device divides their
// work: cpu/plan/work_blocks.hpp, cuda/plan/device_plan.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/shared_prefixes.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh {

/// Keys of multi-head latent attention have 576 elements (512 + 64); no model in use has wider
/// ones.
inline constexpr int kMaxHeadDim = 576;

/// One sequence of a step, as kernels see it. Its pages are this rank's, in ascending logical
/// order. Its queries are the next of the batch's query tokens, its appended tokens, the last of
/// its length, the next of the batch's new ones.
struct AttendSequence {
  std::int64_t queries = 0;
  std::int64_t kv_len = 0;
  std::span<const LocalPage> pages{};
  bool counts_sinks = true;   ///< this rank counts the sinks of its rows
  std::int64_t appended = 0;  ///< its newest tokens that the step writes: their pages are its own
  std::size_t list = 0;       ///< its pages in the page lists of a device
};

/// A ragged batch in the caller's memory. AttentionBatch without a copy of the pages.
struct AttendSteps {
  std::span<const AttendSequence> sequences{};
  std::span<const std::int64_t> q_positions{};  ///< [tokens]; empty: the newest positions
  std::span<const SharedPrefix> shared{};       ///< found by `rules`
  SharedPrefixRules rules{};
};

/// @throws InvalidArgument if the batch does not fit the shape, or either is invalid.
void check_attention(const AttentionShape& shape, const AttentionBatch& batch);

}  // namespace kvmesh
