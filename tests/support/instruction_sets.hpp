// Tests of vector code, once for each instruction set.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>
#include <string>
#include <vector>

namespace kvmesh::test {

/// Runs each test on one instruction set. The base of a fixture that is instantiated so:
///
///   INSTANTIATE_TEST_SUITE_P(EveryTarget, MyTest, testing::ValuesIn(instruction_sets()),
///                            instruction_set_name);
class OnInstructionSet : public testing::TestWithParam<std::int64_t> {
 protected:
  OnInstructionSet() { choose(GetParam()); }
  ~OnInstructionSet() override { choose(0); }  // 0: all of them again

 private:
  static void choose(std::int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().DeInit();
  }
};

/// The instruction sets that this machine has and the kernels are compiled for, as Highway's bits.
inline std::vector<std::int64_t> instruction_sets() {
  std::vector<std::int64_t> each;
  for (std::int64_t rest = hwy::SupportedTargets(); rest != 0; rest &= rest - 1) {
    each.push_back(rest & -rest);
  }
  return each;
}

inline std::string instruction_set_name(const testing::TestParamInfo<std::int64_t>& info) {
  return hwy::TargetName(info.param);
}

}  // namespace kvmesh::test
