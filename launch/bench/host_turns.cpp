#include "launch/bench/host_turns.hpp"

#include <vector>

namespace kvmesh::bench {

Row measure_calls(const HostCalls& calls, Mesh& mesh, Machine& machine, const Case& what,
                  int layers, int turns) {
  std::vector<double> seconds, of_plain;
  const auto turn = [&] {
    seconds.push_back(calls.once());
    if (!calls.plain) return;
    Repeated plain = calls.plain->repeated;
    plain.capturable = false;
    of_plain.push_back(machine.time(plain, {}, {}, 1).operation.front());
  };
  for (int warm_up = 0; warm_up < 2; ++warm_up) turn();
  seconds.clear();
  of_plain.clear();
  for (int i = 0; i < turns; ++i) turn();
  all_reduce_max(mesh.world(), seconds, "bench: times");
  all_reduce_max(mesh.world(), of_plain, "bench: ceilings");
  Row row{.what = what,
          .layers = layers,
          .calls = 1,
          .turns = turns,
          .timing = Timing::kHost,
          .operation = {.amount = calls.amount, .seconds = summarise(seconds)}};
  if (calls.plain) row.ceiling = Row::Top{calls.plain->name, {calls.amount, summarise(of_plain)}};
  return row;
}

}  // namespace kvmesh::bench
