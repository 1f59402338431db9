// The captured buffers of mods in the form of a kernel parameter. Compiled by the host's compiler
// and by NVRTC, so it includes nothing.
#pragma once

namespace kvmesh {

/// One captured buffer. Its size is a parameter, not a constant of the compiled kernel: document
/// ids of another length need no other kernel.
struct ModBufferView {
  const void* data;  ///< [size] float, int or (bool) unsigned char, on the device
  int size;          ///< > 0
};

inline constexpr int kMaxModBuffers = 16;

/// A part of a kernel's parameters: first the score mod's buffers, then the mask mod's.
struct ModBuffers {
  ModBufferView views[kMaxModBuffers];
};

}  // namespace kvmesh
