// What core asks of CUDA. Built without it, every call but the first says so.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>

#include "kvmesh/device_memory.hpp"

namespace kvmesh::cuda_memory {

using Owner = std::unique_ptr<void, std::function<void(void*)>>;

int device_count();
/// What tells this GPU from every other one.
std::array<char, 16> identity(int device);
void use_device(int index);
void synchronize(Stream stream);
void copy_bytes(void* to, const void* from, std::size_t size_bytes);
Owner allocate(int device, std::size_t size_bytes, HostAccess access);

}  // namespace kvmesh::cuda_memory
