// What a compiled kernel takes of the chip.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvmesh::jit {

struct KernelResources {
  std::string name{};
  int registers = 0;  ///< a thread
  /// Local memory of a thread: arrays that are indexed at run time, and what was spilled.
  int stack_bytes = 0;
  int spill_store_bytes = 0;
  int spill_load_bytes = 0;
  int shared_bytes = 0;  ///< static, a block

  /// Nothing of it goes through local memory, as a hot kernel must not.
  bool stays_in_registers() const {
    return stack_bytes == 0 && spill_store_bytes == 0 && spill_load_bytes == 0;
  }
};

/// "attend: 96 registers, 0 bytes stack, ...", for messages.
std::string to_string(const KernelResources& resources);

/// Of every kernel that the compiler's log speaks of. With what the functions that it calls take.
std::vector<KernelResources> read_resources(std::string_view log);

}  // namespace kvmesh::jit
