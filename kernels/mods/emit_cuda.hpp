// Prints a mod's graph as CUDA C++, to be compiled into a kernel.
#pragma once

#include <string>
#include <vector>

#include "kernels/mods/graph.hpp"
#include "kernels/mods/mod_buffers.hpp"

namespace kvmesh {

/// Two mods, ready for a kernel. The text contains the types of the buffers but not their contents:
/// mods that differ only in the contents of captured buffers have the same kernel.
struct CudaMods {
  /// Defines, in the namespace kvmesh:
  ///
  ///   constexpr bool kHasScoreMod, kHasMaskMod;  // false: the function is the identity, skip it
  ///   constexpr int kModBuffers;                 // number of buffers in use
  ///   constexpr float kCapDivisor, kCapFactor;   // of the soft cap that alone reads the score
  ///   float kvmesh_score_mod<Math>(Score score, int b, int h, int q, Place kv, const ModBuffers&);
  ///   bool kvmesh_mask_mod(int b, int h, int q, int kv, const ModBuffers&);
  ///
  /// Where there is no such soft cap its numbers are 0. `Math`, by default RoundedMath, decides how
  /// some operations are computed. `Score` is float, or CappedScore where the score has a soft cap;
  /// `Place` is int or KeyPlace.
  ///
  /// It includes kernels/mods/mod_ops.cuh, which must be among the program's files, as must
  /// kernels/mods/mod_buffers.hpp.
  std::string text;
  /// The buffers for ModBuffers, in this order, to be sent to the device.
  std::vector<ModBuffer> buffers;
};

/// Equal graphs give equal texts. @throws InvalidArgument if the mods have more than kMaxModBuffers
/// buffers.
CudaMods emit_cuda(const ModGraph& score, const ModGraph& mask);

}  // namespace kvmesh
