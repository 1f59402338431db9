// Programs for the tests.
#pragma once

#include <string>

#include "kernels/jit/program.hpp"
#include "kernels/mods/emit_cuda.hpp"
#include "kvmesh/mods.hpp"
#include "tests/kernels/jit/test_files.hpp"

namespace kvmesh::test {

inline constexpr const char* kSample = "tests/kernels/jit/sample.cuh";
inline constexpr const char* kEvaluateMods = "tests/kernels/jit/evaluate_mods.cuh";

/// Programs that differ in `factor` differ in their keys.
inline jit::Program sample_program(float factor = 2.0f) {
  jit::Program program{.files = jit_test_files(), .source = kSample, .architecture = "sm_90a"};
  program.constants.set("kFactor", factor).set("kOffset", -1).set("kShift", true);
  return program;
}

inline jit::Program mods_program(const ScoreMod& score, const MaskMod& mask,
                                 std::string architecture = "sm_90a") {
  return {.files = jit_test_files(),
          .source = kEvaluateMods,
          .mods = emit_cuda(score.graph(), mask.graph()).text,
          .architecture = std::move(architecture)};
}

}  // namespace kvmesh::test
