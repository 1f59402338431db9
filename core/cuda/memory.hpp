// What core asks of CUDA. Built without it, every call but the first says so.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>

#include "core/copy_rows.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh::cuda_memory {

using Owner = std::unique_ptr<void, std::function<void(void*)>>;

int device_count();
/// What tells this GPU from every other one.
std::array<char, 16> identity(int device);
void use_device(int index);
void synchronize_device();
/// Does not wait. `operation` is what an error of the device is said to be of.
bool is_done(Stream stream, std::string_view operation);
void copy_bytes(void* to, const void* from, std::size_t size_bytes);
void copy_rows(const Rows& rows);
std::size_t free_bytes(int device);
Owner allocate(int device, std::size_t size_bytes);

/// Lets other processes map a block of `allocate`. False if the system refuses.
bool export_to(void* data, std::array<std::byte, 64>& handle);
/// Another process's block; null if it cannot be mapped.
std::shared_ptr<void> import_from(const std::array<std::byte, 64>& handle, int device);
/// True if kernels on `device` can use the memory of `other`, of this process. Sees to it.
bool can_reach(int device, int other);

}  // namespace kvmesh::cuda_memory
