// The owner of a handle of a C library.
#pragma once

#include <memory>
#include <type_traits>

namespace kvmesh {

/// Calls `kDestroy` and ignores its result: owners end also while the library itself ends.
template <auto kDestroy>
struct DestroyBy {
  template <class Object>
  void operator()(Object* handle) const {
    static_cast<void>(kDestroy(handle));
  }
};

/// Owns a handle, which is a pointer; null is none. Moves, does not copy. File descriptors have
/// Descriptor (core/posix).
template <class Handle, auto kDestroy>
using UniqueHandle = std::unique_ptr<std::remove_pointer_t<Handle>, DestroyBy<kDestroy>>;

}  // namespace kvmesh
