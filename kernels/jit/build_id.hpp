// Identifies the build of a loaded library.
#pragma once

#include <string>

namespace kvmesh::jit {

/// Returns the build id that the linker gave to the program or shared library that contains
/// `address`: a hash of its contents, in hexadecimal digits. Empty if no library contains it, or
/// the library was linked without one. Takes microseconds: it is read from memory.
std::string build_id_of(const void* address);

}  // namespace kvmesh::jit
