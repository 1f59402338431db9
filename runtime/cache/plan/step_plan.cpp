// plan: once per step. run: once per layer.
#include "runtime/cache/plan/step_plan_state.hpp"

namespace kvmesh {

StepPlan::StepPlan() noexcept = default;
StepPlan::StepPlan(std::unique_ptr<State> state) : state_(std::move(state)) {}
StepPlan::~StepPlan() = default;
StepPlan::StepPlan(StepPlan&&) noexcept = default;
StepPlan& StepPlan::operator=(StepPlan&&) noexcept = default;

StepPlan::State& StepPlan::state() const {
  require(state_ != nullptr, "plan: the plan has been moved from");
  return *state_;
}

std::int64_t StepPlan::query_tokens() const { return state().query_tokens(); }
std::int64_t StepPlan::append_tokens() const { return state().append_tokens(); }
void StepPlan::run(int layer, const LayerInput& input, const CombineOutput& output, Stream stream) {
  state().run(layer, input, output, stream);
}
void StepPlan::append(int layer, const ConstTensorView& k, const ConstTensorView& v,
                      Stream stream) {
  state().append(layer, k, v, stream);
}
void StepPlan::attend_partial(int layer, const ConstTensorView& q, const Partial& out,
                              Stream stream, const ConstTensorView& sinks) {
  state().attend_partial(layer, q, out, stream, sinks);
}
void StepPlan::combine(const Partial& mine, const CombineOutput& output, Stream stream, int layer) {
  state().combine(mine, output, stream, layer);
}
void StepPlan::gather_queries(int layer, const ConstTensorView& share, const TensorView& q,
                              Stream stream) {
  state().gather_queries(layer, share, q, stream);
}
IndexRange StepPlan::tokens_of_output() const { return state().tokens_of_output(); }
IndexRange StepPlan::heads_of_output(int layer) const { return state().heads_of_output(layer); }
const Participation& StepPlan::participation(int layer) const {
  return state().participation(layer);
}
TileCounts StepPlan::tiles() const { return state().tiles(); }

std::int64_t StepPlan::workspace_bytes() const { return state().workspace_bytes(); }
std::int64_t StepPlan::host_bytes() const { return state().host_bytes(); }
std::uint64_t StepPlan::generation() const { return state().generation(); }

}  // namespace kvmesh
