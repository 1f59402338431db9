// The fewest bytes and operations that one call of an operation needs on this rank.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "launch/bench/workload.hpp"

namespace kvmesh::bench {

/// Whether the keys of a prefix that sequences share count once, or once per sequence.
enum class Prefix : std::uint8_t { kOfEach, kOnce };

/// Returns the bytes of K and V of the visible keys, Q, and the output, each once. With a window it
/// is the mean of both kinds of layers.
double attend_bytes(Workload& workload, std::int64_t queries, Output output = Output::kPartial,
                    Prefix prefix = Prefix::kOfEach);

/// Returns the same for attention to token lists [queries, length]: each position in a list counts,
/// if this rank has it.
double listed_bytes(Workload& workload, std::span<const std::int32_t> lists, std::int64_t queries,
                    Output output);

/// The pages of this rank that attention reads, in every layer.
PageReads page_reads(Workload& workload, const ConstTensorView& q, std::vector<TensorView> out,
                     Prefix prefix = Prefix::kOfEach);

/// The tokens of this rank in token lists, as pages of one token. REQUIRES: one kv head on each
/// rank.
PageReads token_reads(Workload& workload, std::span<const std::int32_t> lists, std::int64_t queries,
                      const ConstTensorView& q, std::vector<TensorView> out);

/// Operations of both products for every visible (query, key) pair, two per multiply-add.
double attend_operations(Workload& workload, std::int64_t queries);

/// Bytes of the newest `tokens` keys and values of each sequence on this rank. An append reads this
/// many bytes and writes this many.
double appended_bytes(Workload& workload, std::int64_t tokens);

/// Bytes that this rank sends to, and receives from, each kv rank in a combine by all-to-all: the
/// float32 (O, LSE) rows in which it takes part, to their owners.
struct Traffic {
  std::vector<std::int64_t> sent;
  std::vector<std::int64_t> received;
};
Traffic combine_traffic(Workload& workload, const StepPlan& plan, Scatter scatter,
                        Dtype travels_as = Dtype::kFloat32);

/// Bytes that this rank sends to kv ranks of other hosts in a combine by all-to-alls of float32
/// rows: every rank to each row's owners; and where each host merges its rows first, as the
/// hierarchical way does, if that takes the combine.
struct HostTraffic {
  std::int64_t flat = 0;
  std::optional<std::int64_t> hierarchical{};
};
/// Returns none if all kv ranks lie on one host.
std::optional<HostTraffic> host_traffic(Workload& workload, const StepPlan& plan, Scatter scatter);
/// The same as combine_traffic for a query gather: each rank's share of this rank's heads, to all
/// others.
Traffic gather_traffic(Workload& workload, const StepPlan& plan);

}  // namespace kvmesh::bench
