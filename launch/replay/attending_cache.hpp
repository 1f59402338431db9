// One rank's cache of a replay: it holds keys and values, and computes attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kvmesh/kv_cache.hpp"
#include "launch/device/device_stage.hpp"
#include "launch/replay/contents.hpp"
#include "launch/replay/row_check.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::replay {

/// Its calls are collective over the mesh. In every `every`th batch (0: in none) it computes
/// attention, in all layers. The ranks then compare sequences in turn: the output of the newest
/// token in one query head of each kv head, which is another one the next time.
class AttendingCache final : public Served {
 public:
  /// REQUIRES: `contents` are of this shape. @throws the errors of KvCache.
  AttendingCache(Mesh& mesh, const Trace& trace, const ReplayOptions& options,
                 const AttendShape& shape, const Contents& contents, std::int64_t every);

  SequenceId begin(const PrefixKey& key) override;
  void append(std::span<const Growth> batch) override;
  void publish(SequenceId sequence, const PrefixKey& key) override;
  void erase(SequenceId sequence) override;
  const PageAllocator& allocator() const override { return cache_.allocator(); }

  /// Compares the ranks' allocators. @throws DigestMismatch.
  void check_replicas() { cache_.check_replicas(); }
  std::int64_t checked_batches() const { return checked_; }
  const verify::Findings& findings() const { return check_.findings(); }
  TierStatistics tiers() const { return cache_.tier_statistics(); }
  /// CPU time of this thread in calls of the cache, except those of checked batches' attention.
  double seconds() const { return seconds_; }

 private:
  ConstTensorView to_device(launch::DeviceStage& stage, const std::vector<std::byte>& numbers,
                            std::int64_t rows, int heads);
  LayerInput keys_and_values(int layer);
  /// Runs a layer, and compares rows.
  void run(int layer, const LayerInput& input, std::span<const Growth> batch);
  /// Draws the rows of all queries of the batch: [query token, head].
  void draw_queries(int layer);
  void compare(int layer, std::span<const Growth> batch);

  const Trace& trace_;
  AttendShape shape_;
  const Contents& contents_;
  std::int64_t every_, batches_ = 0, checked_ = 0;
  KvCache cache_;
  Mesh& mesh_;
  launch::DeviceStage k_stage_, v_stage_, q_stage_, o_stage_;
  RowCheck check_;
  bool seeks_keys_;
  verify::Random random_;  // the same numbers on all ranks
  std::optional<StepPlan> step_;
  std::vector<BatchEntry> entries_;
  std::vector<TokenRow> appended_;                // of the batch
  std::vector<std::vector<TokenRow>> sequences_;  // of a checked batch, all their tokens
  std::vector<std::size_t> queries_;
  std::vector<std::byte> k_, v_, q_;
  std::vector<float> o_;
  double seconds_ = 0;
};

}  // namespace kvmesh::replay
