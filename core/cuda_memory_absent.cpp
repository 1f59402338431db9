#include "core/cuda_memory.hpp"
#include "kvmesh/error.hpp"

namespace kvmesh::cuda_memory {
namespace {

[[noreturn]] void absent() {
  throw Unsupported("this build has no CUDA backend: use the device 'cpu' or 'auto'");
}

}  // namespace

int device_count() { return 0; }
std::array<char, 16> identity(int) { absent(); }
void use_device(int) { absent(); }
void synchronize(Stream) { absent(); }
void copy_bytes(void*, const void*, std::size_t) { absent(); }
Owner allocate(int, std::size_t, HostAccess) { absent(); }

}  // namespace kvmesh::cuda_memory
