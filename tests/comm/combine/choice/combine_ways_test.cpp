// The variables that choose a way. An empty one counts as not set, as those of launchers do.
#include "comm/combine/choice/combine_ways.hpp"

#include <gtest/gtest.h>

#include "comm/combine/choice/agreed_table.hpp"
#include "kvmesh/error.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh {
namespace {

std::optional<WayKind> way_named(const char* value) {
  const test::Variable way("KVMESH_COMBINE_WAY", value);
  return way_of_environment();
}

TEST(WayOfEnvironment, IsTheOneThatIsNamed) {
  EXPECT_EQ(way_named("host"), WayKind::kHost);
  EXPECT_EQ(way_named("peer"), WayKind::kPeer);
  EXPECT_THROW(way_named("Host"), InvalidArgument);
}

TEST(WayOfEnvironment, IsNoneIfTheVariableIsEmpty) {
  for (const char* value : {static_cast<const char*>(nullptr), "", "auto"}) {
    EXPECT_EQ(way_named(value), std::nullopt);
  }
}

TEST(TableUseOfEnvironment, IsAutoIfTheVariableIsEmpty) {
  const test::Variable table("KVMESH_COMBINE_TABLE", "");
  EXPECT_EQ(table_use_of_environment(), TableUse::kAuto);
}

}  // namespace
}  // namespace kvmesh
