#include "kernels/cuda/common/kernel_store.hpp"

#include "core/cuda/check.hpp"

namespace kvmesh::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "querying the device's properties");
  return value;
}

}  // namespace

KernelStore::KernelStore(int device, std::filesystem::path cache_directory)
    : cache_(std::move(cache_directory)),
      device_(device),
      architecture_(jit::architecture_of(device)),
      compiler_(jit::compiler_version()),
      multiprocessors_(attribute(cudaDevAttrMultiProcessorCount, device)),
      block_shared_bytes_(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device)),
      multiprocessor_shared_bytes_(attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device)) {
}

jit::Kernel KernelStore::get(const jit::Program& program, const char* name, int shared_bytes) {
  const jit::ProgramKey key = jit::key_of(program, compiler_);
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = modules_.find(key); found != modules_.end()) {
      return found->second.kernel(name);
    }
  }
  const auto [cubin, origin] = cache_.get(program);  // compiles without the lock
  before_loading_();
  const std::lock_guard lock(mutex_);
  const auto [place, inserted] = modules_.try_emplace(key, cubin->bytes);
  if (!inserted) return place->second.kernel(name);
  try {
    const jit::Kernel kernel = place->second.kernel(name);
    if (shared_bytes > 0) kernel.allow_shared_bytes(shared_bytes, device_);
    return kernel;
  } catch (...) {
    modules_.erase(place);  // a later call loads it again
    throw;
  }
}

std::vector<std::string> KernelStore::programs() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> keys;
  for (const auto& [key, module] : modules_) keys.push_back(jit::to_string(key));
  return keys;
}

}  // namespace kvmesh::cuda
