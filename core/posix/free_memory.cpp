#include "core/posix/free_memory.hpp"

#include <fstream>
#include <limits>
#include <string>

#include "core/cuda/memory.hpp"

namespace kvmesh {

std::size_t free_memory(Device device) {
  if (device.kind == DeviceKind::kCuda) return cuda_memory::free_bytes(device.index);
  std::ifstream lines("/proc/meminfo");
  for (std::string key; lines >> key;) {
    std::size_t kib = 0;
    if (key == "MemAvailable:" && lines >> kib) return kib * 1024;
    lines.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return 0;
}

}  // namespace kvmesh
