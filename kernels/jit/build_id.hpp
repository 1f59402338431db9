// Which build of a library is loaded.
#pragma once

#include <string>

namespace kvmesh::jit {

/// The build id that the linker gave to the program or shared library that has `address` in it: a
/// hash of its contents, in hexadecimal digits. Empty if none has, or it was linked without one.
/// Microseconds: it is read from memory.
std::string build_id_of(const void* address);

}  // namespace kvmesh::jit
