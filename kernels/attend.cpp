// AttentionPlan: checks, workspace, and the loop over tasks.
#include <cmath>
#include <span>

#include "kernels/attend_checks.hpp"
#include "kernels/attend_work.hpp"
#include "kernels/cpu/attend_task.hpp"

namespace kvmesh {

class AttentionPlan::State {
 public:
  State(const AttentionShape& shape, const AttentionBatch& batch, const AttentionOptions& options)
      : shape_(shape),
        options_(options),
        kv_lens_(batch.kv_lens),
        work_(make_attend_work(shape, batch, options)),
        workspace_o_(static_cast<std::size_t>(work_.workspace_rows * shape.v_dim)),
        workspace_lse_(static_cast<std::size_t>(work_.workspace_rows)) {
    check_scale(options.scale);
    require(options.first_head >= 0, "attention: the first head is {}", options.first_head);
    options_.block_mask = nullptr;  // its pages are in work_ now
    for (const LocalPage& page : batch.pages) max_page_ = std::max(max_page_, page.page);
    for (const WorkBlock& block : work_.blocks) {
      const auto rows = static_cast<int>(block.q_end - block.q_begin) * group();
      max_rows_ = std::max(max_rows_, rows);
    }
  }

  void attend_partial(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
                      ThreadPool& threads) {
    check_attend_inputs(shape_, tokens(), max_page_, q, pool);
    check_attend_partial(shape_, tokens(), out);
    while (static_cast<int>(scratch_.size()) < threads.threads()) {
      scratch_.push_back(std::make_unique<cpu::AttendScratch>(shape_, max_rows_, options_));
    }
    const cpu::AttendInputs inputs{
        .work = &work_,
        .kv_lens = kv_lens_.data(),
        .shape = shape_,
        .scale = options_.scale.value_or(1.0f / std::sqrt(static_cast<float>(shape_.k_dim))),
        .first_head = options_.first_head,
        .q = q,
        .pool = pool,
        .out = out,
        .workspace_o = workspace_o_.data(),
        .workspace_lse = workspace_lse_.data()};
    threads.for_each(static_cast<std::int64_t>(work_.tasks.size()),
                     [&](std::int64_t i, int thread) {
                       cpu::attend_task(inputs, work_.tasks[static_cast<std::size_t>(i)],
                                        *scratch_[static_cast<std::size_t>(thread)]);
                     });
    threads.for_each(static_cast<std::int64_t>(work_.merges.size()), [&](std::int64_t i, int) {
      const auto block = static_cast<std::size_t>(work_.merges[static_cast<std::size_t>(i)]);
      cpu::merge_splits(inputs, work_.blocks[block]);
    });
  }

  std::int64_t tokens() const { return static_cast<std::int64_t>(work_.positions.size()); }
  TileCounts tiles() const { return work_.tiles; }
  std::int64_t workspace_bytes() const {
    return static_cast<std::int64_t>((workspace_o_.size() + workspace_lse_.size()) * sizeof(float));
  }

 private:
  int group() const { return shape_.q_heads / shape_.kv_heads; }

  AttentionShape shape_;
  AttentionOptions options_;
  std::vector<std::int64_t> kv_lens_;
  AttendWork work_;
  std::vector<float> workspace_o_;
  std::vector<float> workspace_lse_;
  std::vector<std::unique_ptr<cpu::AttendScratch>> scratch_;  // one a thread
  std::int32_t max_page_ = -1;
  int max_rows_ = 0;
};

AttentionPlan::AttentionPlan(const AttentionShape& shape, const AttentionBatch& batch,
                             const AttentionOptions& options)
    : state_(std::make_unique<State>(shape, batch, options)) {}
AttentionPlan::~AttentionPlan() = default;
AttentionPlan::AttentionPlan(AttentionPlan&&) noexcept = default;
AttentionPlan& AttentionPlan::operator=(AttentionPlan&&) noexcept = default;

void AttentionPlan::attend_partial(const ConstTensorView& q, const ConstKvPool& pool,
                                   const Partial& out, ThreadPool& threads) {
  state_->attend_partial(q, pool, out, threads);
}
std::int64_t AttentionPlan::tokens() const { return state_->tokens(); }
TileCounts AttentionPlan::tiles() const { return state_->tiles(); }
std::int64_t AttentionPlan::workspace_bytes() const { return state_->workspace_bytes(); }

}  // namespace kvmesh
