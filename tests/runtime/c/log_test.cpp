#include <gtest/gtest.h>

#include <string>

#include "core/log.hpp"
#include "kvmesh/c/kvmesh.h"

namespace kvmesh {
namespace {

void keep(const char* line, void* to) { *static_cast<std::string*>(to) = line; }

TEST(CLog, LinesGoToTheFunctionOfC) {
  std::string said;
  kvmesh_set_log(keep, &said);
  log_line("late");
  kvmesh_set_log(nullptr, nullptr);
  EXPECT_EQ(said, "late");
}

}  // namespace
}  // namespace kvmesh
