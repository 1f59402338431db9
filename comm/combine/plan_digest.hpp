// Hashes that show whether two ranks planned the same step.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace kvmesh {

/// Groups of the fields that a step is planned from. All must be the same on every rank.
enum class PlanGroup : std::uint8_t {
  kLengths,  ///< sequences, their lengths and pages, queries, positions, limits, shapes
  kMask,     ///< mask mod, score mod, block mask
  kScale,
  kStrategy,  ///< strategy, scatter, and in which parts rows are summed
};
inline constexpr std::size_t kPlanGroups = 4;

/// One hash per group. 16 bytes: it travels behind the rows of each message of the host's way.
struct PlanDigest {
  std::array<std::uint32_t, kPlanGroups> groups{};

  /// Folds `hash` into a group.
  void add(PlanGroup group, std::uint64_t hash);
  friend bool operator==(const PlanDigest&, const PlanDigest&) = default;
};

/// Names the groups that differ: "lengths, mask".
std::string differing_groups(const PlanDigest& a, const PlanDigest& b);

}  // namespace kvmesh
