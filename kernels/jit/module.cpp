#include "kernels/jit/module.hpp"

#include <fmt/format.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "core/cuda/check.hpp"

namespace kvmesh::jit {

Module::Module(std::span<const std::byte> cubin) {
  cudaLibrary_t library = nullptr;
  check(cudaLibraryLoadData(&library, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "loading compiled kernels");
  library_.reset(library);
}

Kernel Module::kernel(const std::string& name) const {
  cudaKernel_t handle = nullptr;
  check(cudaLibraryGetKernel(&handle, library_.get(), name.c_str()),
        fmt::format("finding the kernel {}", name));
  cudaFuncAttributes unused;
  check(cudaFuncGetAttributes(&unused, handle), fmt::format("loading the kernel {}", name));
  return Kernel(handle, name);
}

void Kernel::allow_shared_bytes(std::size_t bytes, int device) const {
  check(cudaKernelSetAttributeForDevice(handle_, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(bytes), device),
        fmt::format("allowing {} {} bytes of shared memory", name_, bytes));
}

int Kernel::blocks_per_multiprocessor(int block_threads, std::size_t shared_bytes) const {
  int blocks = 0;
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, handle_, block_threads, shared_bytes),
      fmt::format("querying the occupancy of {}", name_));
  return blocks;
}

void Kernel::launch_bytes(const Launch& how, const void* params) const {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;

  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = &overlap;
  config.numAttrs = how.overlaps_previous ? 1 : 0;

  std::array<void*, 1> arguments{const_cast<void*>(params)};  // read only: the API says void**
  // On the path of every step: the message is composed only after a failure.
  const cudaError_t status = cudaLaunchKernelExC(&config, handle_, arguments.data());
  if (status != cudaSuccess) check(status, "launching " + name_);
}

std::string architecture_of(int device) {
  int major = 0;
  int minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "querying the compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
        "querying the compute capability");
  // wgmma and setmaxnreg exist on this very chip alone, and kernels for it use them.
  const char* suffix = major == 9 ? "a" : "";
  return fmt::format("sm_{}{}{}", major, minor, suffix);
}

bool can_overlap_launches(const std::string& architecture) {
  return std::atoi(architecture.c_str() + std::strlen("sm_")) >= 90;
}

}  // namespace kvmesh::jit
