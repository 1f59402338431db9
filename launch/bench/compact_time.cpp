#include "launch/bench/compact_time.hpp"

#include <algorithm>

#include "launch/bench/host_turns.hpp"
#include "launch/bench/manners.hpp"

namespace kvmesh::bench {
namespace {

/// Returns the drafts that are kept, counted from the first: the path to the newest token of a tree
/// in which each has `children`.
std::vector<std::int64_t> accepted_path(std::int64_t drafts, int children) {
  const std::vector<std::int32_t> parents = tree_parents(drafts, children);
  std::vector<std::int64_t> path;
  for (std::int64_t draft = drafts - 1; draft >= 0;
       draft = parents[static_cast<std::size_t>(draft)])
    path.push_back(draft);
  std::ranges::reverse(path);
  return path;
}

/// The batch's drafts, which are appended again before each time.
class DraftedBatch {
 public:
  DraftedBatch(Workload& workload, const Options& options, std::int64_t drafts)
      : workload_(workload), plan_(workload.cache().plan({}, {})), drafts_(drafts) {
    const std::vector<std::int64_t> path =
        accepted_path(drafts, options.tree > 0 ? options.tree : kChildren);
    for (std::size_t i = 0; i < workload.sequences().size(); ++i) {
      const std::int64_t begin =
          first_draft(workload.lengths()[i] - drafts, std::ssize(path), options.drafts);
      KeptTokens& kept = kept_.emplace_back(KeptTokens{workload.sequences()[i], begin, {}});
      for (std::size_t level = 0; level < path.size(); ++level) {
        const auto draft =
            options.drafts == Drafts::kStay ? static_cast<std::int64_t>(level) : path[level];
        kept.kept.push_back(begin + draft);
        moved_ += draft != static_cast<std::int64_t>(level) ? 1 : 0;
      }
    }
  }
  DraftedBatch(const DraftedBatch&) = delete;
  DraftedBatch& operator=(const DraftedBatch&) = delete;
  ~DraftedBatch() = default;

  /// Returns how many tokens move.
  std::int64_t moved() const { return moved_; }

  /// Returns the seconds of one time.
  double once() {
    append_up_to([this](std::size_t i) { return kept_[i].begin + drafts_; });
    Mesh& mesh = workload_.mesh();
    barrier(mesh.world(), "bench: drafts");
    return seconds_of([&] {
      workload_.cache().compact(kept_);
      mesh.wait({}, "bench: compact");
    });
  }
  void append_whole() {
    append_up_to([this](std::size_t i) { return workload_.lengths()[i]; });
  }

 private:
  static constexpr int kChildren = 2;  // without --tree

  /// The last place, at most `last`, where the first draft is a page's first token, or where the
  /// path ends with a page once it is together.
  std::int64_t first_draft(std::int64_t last, std::int64_t path, Drafts drafts) const {
    const std::int64_t page = workload_.shape().model.page_size;
    if (drafts != Drafts::kAcross) return last / page * page;
    return (last + path) / page * page - path;
  }

  /// Appends tokens from the first draft on. Their contents do not matter.
  void append_up_to(const auto& length_of) {
    std::vector<BatchEntry> batch;
    for (std::size_t i = 0; i < kept_.size(); ++i) {
      const auto& [sequence, begin, kept] = kept_[i];
      workload_.cache().truncate(sequence, begin);
      batch.push_back({sequence, length_of(i) - begin, 0});
    }
    workload_.cache().replan(plan_, batch);
    workload_.mesh().wait({}, "bench: drafts");
  }

  Workload& workload_;
  StepPlan plan_;
  std::int64_t drafts_;
  std::int64_t moved_ = 0;
  std::vector<KeptTokens> kept_;
};

}  // namespace

Row measure_compact(Workload& workload, Machine& machine, const Options& options,
                    std::int64_t drafts) {
  DraftedBatch batch(workload, options, drafts);
  Mesh& mesh = workload.mesh();
  const WorkloadShape& shape = workload.shape();
  const std::int64_t bytes = batch.moved() * shape.layers *
                             (shape.model.kv_heads / mesh.head_parallel()) *
                             shape.model.page_row_bytes();
  HostCalls calls{.once = [&] { return batch.once(); },
                  .amount = static_cast<double>(bytes) * mesh.head_parallel()};
  if (bytes > 0 && mesh.kv_parallel() == 1)
    calls.plain = machine.copy_within(static_cast<std::size_t>(bytes));
  Row row = measure_calls(calls, mesh, machine, case_of(shape, Op::kCompact, drafts), shape.layers,
                          options.repeats);
  batch.append_whole();
  return row;
}

}  // namespace kvmesh::bench
