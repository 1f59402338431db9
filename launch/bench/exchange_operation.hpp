// Operations in which the kv ranks exchange rows.
#pragma once

#include <memory>

#include "launch/bench/operation.hpp"

namespace kvmesh::bench {

/// See make_operation. REQUIRES: kCombine, kStep or kGather.
std::unique_ptr<Operation> make_exchange_operation(Workload& workload, Machine& machine,
                                                   const Options& options, Op op,
                                                   std::int64_t queries);

}  // namespace kvmesh::bench
