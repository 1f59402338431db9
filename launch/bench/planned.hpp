// A planned step of a workload, of which an operation measures a part.
#pragma once

#include "launch/bench/amounts.hpp"
#include "launch/bench/manners.hpp"
#include "launch/bench/operation.hpp"

namespace kvmesh::bench {

/// The members that all operations share.
class Planned : public Operation {
 public:
  Planned(Workload& workload, Machine& machine, const Options& options, std::int64_t append,
          std::int64_t queries)
      : workload_(workload),
        machine_(machine),
        plan_(workload.plan(append, queries, plan_options(workload, options, queries))),
        input_(workload.input(plan_)),
        prefix_(options.shares_prefixes ? Prefix::kOnce : Prefix::kOfEach) {
    if (options.manner == Manner::kSinks) input_.sinks = workload.sinks();
  }

 protected:
  Workload& workload_;
  Machine& machine_;
  StepPlan plan_;
  LayerInput input_;
  Prefix prefix_;
};

}  // namespace kvmesh::bench
