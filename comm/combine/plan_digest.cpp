#include "comm/combine/plan_digest.hpp"

#include <string_view>

#include "core/hash.hpp"

namespace kvmesh {
namespace {

constexpr std::array<std::string_view, kPlanGroups> kNames{"lengths", "mask", "scale", "strategy"};

}  // namespace

void PlanDigest::add(PlanGroup group, std::uint64_t hash) {
  std::uint32_t& word = groups[static_cast<std::size_t>(group)];
  word = static_cast<std::uint32_t>(Hash().add(word).add(hash).value());
}

std::string differing_groups(const PlanDigest& a, const PlanDigest& b) {
  std::string names;
  for (std::size_t i = 0; i < kPlanGroups; ++i) {
    if (a.groups[i] == b.groups[i]) continue;
    if (!names.empty()) names += ", ";
    names += kNames[i];
  }
  return names;
}

}  // namespace kvmesh
