// The points and results of evaluate_mods.
#pragma once

#include <cstdint>

#include "kernels/mods/mod_buffers.hpp"

namespace kvmesh {

struct EvaluateModsParams {
  const float* score;  // [count], as are all below
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
