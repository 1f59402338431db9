// Hosts as NCCL sees them: by NCCL_HOSTID ranks of one machine are those of several. NCCL refuses
// two ranks on one GPU of a host.
#pragma once

#include <cstdlib>

#include "tests/support/environment.hpp"

namespace kvmesh::test {

inline constexpr const char* kNcclHost = "NCCL_HOSTID";

/// Names this rank's host, until the process ends.
inline void name_nccl_host(const char* host) { ::setenv(kNcclHost, host, 1); }

/// Names this rank's host until it is destroyed.
class NcclHost : public Variable {
 public:
  explicit NcclHost(const char* host) : Variable(kNcclHost, host) {}
};

/// Returns how many GPUs NCCL needs for `ranks` ranks, which are `per_host` to a host where hosts
/// are named, and else all of one host.
inline int gpus_for_nccl(int ranks, int per_host) {
  return std::getenv(kNcclHost) != nullptr ? per_host : ranks;
}

}  // namespace kvmesh::test
