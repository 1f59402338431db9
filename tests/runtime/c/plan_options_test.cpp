#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "runtime/c/plan_options.hpp"

namespace kvmesh {
namespace {

TEST(CPlanOptions, SharingOfPrefixes) {
  kvmesh_plan_options_t given{};
  given.size = sizeof given;
  given.limit_sequences = 4;
  const PlanOptions usual = c::plan_options(&given);
  EXPECT_TRUE(usual.shares_prefixes);
  EXPECT_FALSE(usual.limits->shares_prefixes);
  EXPECT_FALSE(usual.least_saved_tokens.has_value());

  given.limit_shares_prefixes = 1;
  given.least_saved_tokens = 33;
  const PlanOptions shared = c::plan_options(&given);
  EXPECT_TRUE(shared.limits->shares_prefixes);
  EXPECT_EQ(shared.least_saved_tokens, 33);

  given.reads_prefixes_alone = 1;
  EXPECT_FALSE(c::plan_options(&given).shares_prefixes);
}

TEST(CPlanOptions, TakeEveryWayAndNoOther) {
  kvmesh_plan_options_t given{};
  given.size = sizeof given;
  EXPECT_EQ(c::plan_options(&given).way, std::nullopt);
  const std::pair<std::int32_t, WayKind> ways[] = {
      {KVMESH_WAY_HOST, WayKind::kHost},
      {KVMESH_WAY_STAGED, WayKind::kStaged},
      {KVMESH_WAY_NCCL, WayKind::kNccl},
      {KVMESH_WAY_PEER, WayKind::kPeer},
      {KVMESH_WAY_HIERARCHICAL, WayKind::kHierarchical}};
  for (const auto& [number, way] : ways) {
    given.way = number;
    EXPECT_EQ(c::plan_options(&given).way, way) << number;
  }
  for (const std::int32_t bad : {-1, KVMESH_WAY_HIERARCHICAL + 1, INT32_MIN, INT32_MAX}) {
    given.way = bad;
    EXPECT_THROW(c::plan_options(&given), InvalidArgument) << bad;
  }
}

TEST(CPlanOptions, FixedSplit) {
  kvmesh_plan_options_t given{};
  given.size = sizeof given;
  EXPECT_EQ(c::plan_options(&given).fixed_split_tokens, 0);
  given.fixed_split_tokens = 2048;
  EXPECT_EQ(c::plan_options(&given).fixed_split_tokens, 2048);
  given.size = offsetof(kvmesh_plan_options_t, fixed_split_tokens);
  EXPECT_EQ(c::plan_options(&given).fixed_split_tokens, 0) << "of an older header";
}

TEST(CPlanOptions, OfAnOlderHeaderSharePrefixesAsBefore) {
  kvmesh_plan_options_t given{};
  given.size = sizeof given;
  given.reads_prefixes_alone = 1;
  given.size = offsetof(kvmesh_plan_options_t, reads_prefixes_alone);
  EXPECT_TRUE(c::plan_options(&given).shares_prefixes);
}

}  // namespace
}  // namespace kvmesh
