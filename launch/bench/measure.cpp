#include "launch/bench/measure.hpp"

#include <algorithm>
#include <array>

#include "launch/bench/compact_time.hpp"
#include "launch/bench/fork_time.hpp"
#include "launch/bench/move_time.hpp"
#include "launch/bench/operation.hpp"
#include "launch/bench/plan_time.hpp"

namespace kvmesh::bench {
namespace {

constexpr int kMostCalls = 256;  // per turn, unless the layers need more
constexpr int kFewestTurns = 3;

// The slowest rank's value.
void reduce(Mesh& mesh, Turns& turns) {
  all_reduce_max(mesh.world(), turns.operation, "bench: times");
  for (std::vector<double>& ceiling : turns.ceilings) {
    all_reduce_max(mesh.world(), ceiling, "bench: ceilings");
  }
}

// The sum over all ranks.
double total(Mesh& mesh, double mine) {
  all_reduce_sum(mesh.world(), std::span(&mine, 1), "bench: amounts");
  return mine;
}

// REQUIRES: the same counts on every rank.
std::optional<HostTraffic> total(Mesh& mesh, const std::optional<HostTraffic>& mine) {
  if (!mine) return std::nullopt;
  const auto sum = [&](std::int64_t bytes) {
    return static_cast<std::int64_t>(total(mesh, static_cast<double>(bytes)));
  };
  HostTraffic all{.flat = sum(mine->flat)};
  if (mine->hierarchical) all.hierarchical = sum(*mine->hierarchical);
  return all;
}

Repeated plain(const Repeated& repeated, int calls) {
  return {.work = repeated.work, .calls = calls, .capturable = false};
}

struct Counts {
  int calls = 1;
  int turns = 1;
};

// Chooses the calls of a turn, so that it is long enough to be timed and the row does not take too
// long. Also warms up: the first call compiles kernels, makes buffers and connects ranks.
Counts choose_counts(Mesh& mesh, Machine& machine, const Options& options, Operation& operation,
                     std::span<const Ceiling> ceilings, int layers) {
  const Repeated repeated = operation.repeated();
  std::vector<Repeated> once;
  for (const Ceiling& ceiling : ceilings) once.push_back(plain(ceiling.repeated, 1));
  static_cast<void>(machine.time(plain(repeated, 1), once, {}, 1));
  const int round = operation.rotates() ? layers : 1;
  Turns guess = machine.time(plain(repeated, round), once, {}, 1);
  reduce(mesh, guess);
  const double seconds = std::max(guess.operation.front(), 1e-7);
  const double rounds =
      std::clamp(machine.turn_seconds() / (seconds * round), 1.0,
                 std::max(1.0, static_cast<double>(kMostCalls) / static_cast<double>(round)));
  const int calls = static_cast<int>(rounds) * round;
  double turn = calls * seconds;
  for (std::size_t i = 0; i < ceilings.size(); ++i) {
    turn += (ceilings[i].as_often ? calls : 1) * guess.ceilings[i].front();
  }
  const double turns = std::clamp(options.row_seconds / turn, double{kFewestTurns},
                                  std::max<double>(kFewestTurns, options.repeats));
  return {calls, std::min(options.repeats, static_cast<int>(turns))};
}

// Times the operation and its ceilings in turns. Returns the slowest rank's seconds.
Turns time_turns(Mesh& mesh, Machine& machine, Operation& operation,
                 std::span<const Ceiling> ceilings, const Counts& counts) {
  Repeated repeated = operation.repeated();
  repeated.calls = counts.calls;
  std::vector<Repeated> tops;
  for (const Ceiling& ceiling : ceilings) {
    tops.push_back(ceiling.repeated);
    if (ceiling.as_often) tops.back().calls = counts.calls;
  }
  Turns turns = machine.time(repeated, tops, operation.align(), counts.turns);
  reduce(mesh, turns);
  return turns;
}

Row measure_operation(Workload& workload, Machine& machine, const Options& options, Op op,
                      std::int64_t queries) {
  Mesh& mesh = workload.mesh();
  const auto operation = make_operation(workload, machine, options, op, queries);
  const double amount = total(mesh, operation->amount());
  // If nothing moves between the ranks, there is no limit.
  const std::vector<Ceiling> ceilings = amount > 0 ? operation->ceilings() : std::vector<Ceiling>{};
  const auto layers = static_cast<int>(workload.attended_layers().size());
  const Counts counts = choose_counts(mesh, machine, options, *operation, ceilings, layers);
  const Turns turns = time_turns(mesh, machine, *operation, ceilings, counts);
  Row row{.what = case_of(workload.shape(), op, queries),
          .layers = layers,
          .calls = counts.calls,
          .turns = counts.turns,
          .timing = turns.timing,
          .quantity = operation->quantity(),
          .operation = {amount, summarise(turns.operation)}};
  const auto top = [&](std::size_t i) -> std::optional<Row::Top> {
    if (i >= ceilings.size()) return std::nullopt;
    return Row::Top{ceilings[i].name,
                    {total(mesh, ceilings[i].amount), summarise(turns.ceilings[i])}};
  };
  row.ceiling = top(0);
  row.read = top(1);
  row.error = operation->error();
  row.between_hosts = total(mesh, operation->between_hosts());
  return row;
}

Row measure_by_host(Workload& workload, Machine& machine, const Options& options, Op op,
                    std::int64_t queries) {
  if (op == Op::kPlan) return measure_plan(workload, options, queries);
  if (op == Op::kCompact) return measure_compact(workload, machine, options, queries);
  const WorkloadShape& shape = workload.shape();
  if (op == Op::kFork) return measure_forks(shape, workload.mesh(), machine, options, queries);
  return measure_moves(shape, workload.mesh(), machine, options, op);
}

}  // namespace

Case case_of(const WorkloadShape& shape, Op op, std::int64_t queries) {
  return {op, shape.batch, shape.context, shape.lengths, queries, text_of(shape.listed), {}};
}

Row measure(Workload& workload, Machine& machine, const Options& options, Op op,
            std::int64_t queries, const std::string& way) {
  Row row = is_by_host(op) ? measure_by_host(workload, machine, options, op, queries)
                           : measure_operation(workload, machine, options, op, queries);
  row.what.way = way;
  return row;
}

std::int64_t tensor_bytes(const WorkloadShape& shape, const Mesh& mesh, Op op,
                          std::int64_t queries) {
  const Shape& model = shape.model;
  const auto element = static_cast<std::int64_t>(size_bytes(model.dtype));
  const std::int64_t tokens = newest(lengths_of(shape), queries), parts = mesh.head_parallel();
  const std::int64_t fresh = tokens * (model.kv_heads / parts) * model.row_elements() * element;
  if (is_by_host(op)) return 0;
  if (op == Op::kAppend) return 2 * fresh;
  const std::int64_t partial = std::int64_t{4} * (model.v_dim + 1);
  const std::int64_t row = (model.k_dim + model.v_dim) * element;
  // The queries of all heads, given and gathered, a share of them, and the ceiling's, sent and
  // received.
  if (op == Op::kGather) return 4 * tokens * (model.q_heads / parts) * model.k_dim * element;
  // The combine's buffers, sent and received, for it and for its ceiling.
  const std::int64_t partials =
      op == Op::kCombine || op == Op::kStep ? 2 + 2 * mesh.kv_parallel() : 1;
  return tokens * (model.q_heads / parts) * (row + partials * partial) +
         (op == Op::kStep ? fresh : 0);
}

}  // namespace kvmesh::bench
