#include "core/log.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvmesh {
namespace {

TEST(Log, LinesGoToTheFunctionOrToStandardError) {
  std::vector<std::string> lines;
  set_log([](const char* line,
             void* to) { static_cast<std::vector<std::string>*>(to)->emplace_back(line); },
          &lines);
  log_line("one");
  log_line("two");
  set_log(nullptr);
  testing::internal::CaptureStderr();
  log_line("three");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "kvmesh: three\n");
  EXPECT_EQ(lines, (std::vector<std::string>{"one", "two"}));
}

}  // namespace
}  // namespace kvmesh
