#include <fmt/format.h>

#include "kvmesh/nccl.hpp"

namespace kvmesh {

NcclError::NcclError(Rank rank, std::string operation, const std::string& reason)
    : Error(fmt::format("rank {}: {}: NCCL failed: {}", rank.value, operation, reason)),
      rank_(rank),
      operation_(std::move(operation)) {}

}  // namespace kvmesh
