// AttentionPlan: checks what an engine passes, then plans and runs on the CPU.
#include "kernels/attend_checks.hpp"
#include "kernels/cpu/attend.hpp"

namespace kvmesh {

class AttentionPlan::State {
 public:
  State(const AttentionShape& shape, const AttentionBatch& batch, const AttentionOptions& options)
      : shape_(shape), attend_(shape, options) {
    check_scale(options.scale);
    require(options.first_head >= 0, "attention: the first head is {}, must not be negative",
            options.first_head);
    attend_.plan(batch, options.block_mask);
    for (const LocalPage& page : batch.pages) max_page_ = std::max(max_page_, page.page);
  }

  void attend_partial(const ConstTensorView& q, const ConstKvPool& pool, const Partial& out,
                      ThreadPool& threads, const ConstTensorView& sinks) {
    check_attend_inputs(shape_, attend_.tokens(), max_page_, q, pool);
    check_attend_partial(shape_, attend_.tokens(), out);
    check_sinks(shape_, sinks);
    attend_.run(q, pool, out, threads, sinks);
  }

  const cpu::Attend& attend() const { return attend_; }

 private:
  AttentionShape shape_;
  cpu::Attend attend_;
  std::int32_t max_page_ = -1;
};

AttentionPlan::AttentionPlan(const AttentionShape& shape, const AttentionBatch& batch,
                             const AttentionOptions& options)
    : state_(std::make_unique<State>(shape, batch, options)) {}
AttentionPlan::~AttentionPlan() = default;
AttentionPlan::AttentionPlan(AttentionPlan&&) noexcept = default;
AttentionPlan& AttentionPlan::operator=(AttentionPlan&&) noexcept = default;

AttentionPlan::State& AttentionPlan::state() const {
  require(state_ != nullptr, "attention: the plan has been moved from");
  return *state_;
}

void AttentionPlan::attend_partial(const ConstTensorView& q, const ConstKvPool& pool,
                                   const Partial& out, ThreadPool& threads,
                                   const ConstTensorView& sinks) {
  state().attend_partial(q, pool, out, threads, sinks);
}
std::int64_t AttentionPlan::tokens() const { return state().attend().tokens(); }
TileCounts AttentionPlan::tiles() const { return state().attend().tiles(); }
std::int64_t AttentionPlan::workspace_bytes() const { return state().attend().workspace_bytes(); }

}  // namespace kvmesh
