// Loaded kernels, ready to launch, found by the program they were compiled from.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/posix/cache_directory.hpp"
#include "kernels/jit/cubin_cache.hpp"
#include "kernels/jit/module.hpp"

namespace kvmesh::cuda {

/// One per device, shared by all plans on it. Threads may share it.
class KernelStore {
 public:
  /// REQUIRES: `device` is current wherever its kernels are launched.
  explicit KernelStore(int device,
                       std::filesystem::path cache_directory = default_cache_directory());

  /// Calls `wait` before it loads a kernel: CUDA may wait then, without a deadline, until the
  /// device has done all its work, and `wait` has a deadline.
  void before_loading(std::function<void()> wait) { before_loading_ = std::move(wait); }

  int device() const { return device_; }
  const std::string& architecture() const { return architecture_; }
  int multiprocessors() const { return multiprocessors_; }
  int block_shared_bytes() const { return block_shared_bytes_; }
  int multiprocessor_shared_bytes() const { return multiprocessor_shared_bytes_; }

  /// Returns the kernel `name` of a program, compiled or read from the cache at most once. Its
  /// launches may take `shared_bytes` of dynamic shared memory.
  jit::Kernel get(const jit::Program& program, const char* name, int shared_bytes = 0);
  /// Returns the keys of the loaded programs.
  std::vector<std::string> programs();

 private:
  std::function<void()> before_loading_ = [] {};
  jit::CubinCache cache_;
  int device_;
  std::string architecture_;
  std::string compiler_;
  int multiprocessors_ = 0;
  int block_shared_bytes_ = 0;
  int multiprocessor_shared_bytes_ = 0;
  std::mutex mutex_;  ///< guards the modules
  std::map<jit::ProgramKey, jit::Module> modules_;
};

}  // namespace kvmesh::cuda
