// Where evaluate_mods takes its points from, and where the results go.
#pragma once

#include <cstdint>

#include "kernels/mods/mod_buffers.hpp"

namespace kvmesh {

struct EvaluateModsParams {
  const float* score;  // [count], as all that follow
  const std::int32_t* b;
  const std::int32_t* h;
  const std::int32_t* q;
  const std::int32_t* kv;
  float* modified;
  std::uint8_t* visible;
  std::int32_t count;
  ModBuffers buffers;
};

}  // namespace kvmesh
