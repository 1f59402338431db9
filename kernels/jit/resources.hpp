// The chip's resources that a compiled kernel takes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvmesh::jit {

struct KernelResources {
  std::string name{};
  int registers = 0;  ///< per thread
  /// Local memory per thread: arrays that are indexed at run time, and spilled registers.
  int stack_bytes = 0;
  int spill_store_bytes = 0;
  int spill_load_bytes = 0;
  int shared_bytes = 0;  ///< static, per block

  /// True if no variable is in local memory, as required of a hot kernel.
  bool stays_in_registers() const {
    return stack_bytes == 0 && spill_store_bytes == 0 && spill_load_bytes == 0;
  }
};

/// "attend: 96 registers, 0 bytes stack, ...", for messages.
std::string to_string(const KernelResources& resources);

/// Returns the resources of every kernel in the compiler's log, including those of the functions
/// that it calls.
std::vector<KernelResources> read_resources(std::string_view log);

}  // namespace kvmesh::jit
