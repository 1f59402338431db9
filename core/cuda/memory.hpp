// The CUDA calls that core makes. In a build without CUDA device_count() is 0 and every other call
// throws Unsupported.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "core/owners/unique_handle.hpp"
#include "core/tensors/copy_rows.hpp"
#include "kvmesh/device_memory.hpp"
#include "kvmesh/stream.hpp"

namespace kvmesh::cuda_memory {

void free_memory(void* data);
void free_pinned_memory(void* data);
void destroy_stream(void* stream);
using OwnedMemory = UniqueHandle<void*, free_memory>;
using OwnedPinnedMemory = UniqueHandle<void*, free_pinned_memory>;
using OwnedStream = UniqueHandle<void*, destroy_stream>;

int device_count();
/// The GPU's UUID: no other GPU has it.
std::array<char, 16> identity(int device);
/// The GPU's compute capability, 90 for 9.0: GPUs of one have the same arithmetic.
int compute_capability(int device);
/// Such as "NVIDIA H200".
std::string model(int device);
void use_device(int index);
void synchronize_device();
/// Polls the stream without blocking. `operation` is quoted in the error message.
bool is_done(Stream stream, std::string_view operation);
void copy_bytes(void* to, const void* from, std::size_t size_bytes);
/// Copies on `stream`. The copy runs beside the host only if the host's memory is pinned.
void copy_bytes_on(Stream stream, void* to, const void* from, std::size_t size_bytes);
/// The GPU whose memory `data` is in. None for memory that the host can read, managed memory
/// included.
std::optional<int> gpu_of(const void* data);
/// Returns whether work on the stream would go into a graph that is being captured; of the default
/// stream also if it would break another stream's capture.
bool is_captured(Stream stream);
void copy_rows(const Rows& rows, Stream stream);
/// Sets all bytes, in the order of `stream`.
void fill(void* data, unsigned char value, std::size_t size_bytes, Stream stream);
std::size_t free_bytes(int device);
OwnedMemory allocate(int device, std::size_t size_bytes);
/// Page-locked host memory, which the device copies without a detour.
OwnedPinnedMemory allocate_pinned(int device, std::size_t size_bytes);

/// A stream of `device` that waits for no other stream.
OwnedStream make_stream(int device);

/// Makes a handle with which other processes can map a block of `allocate`. Returns false if the
/// system refuses.
bool export_to(void* data, std::array<std::byte, 64>& handle);
/// Maps another process's block. Returns null if it cannot be mapped.
std::shared_ptr<void> import_from(const std::array<std::byte, 64>& handle, int device);
/// Enables kernels on `device` to access this process's memory on `other`. Returns false if the
/// hardware cannot.
bool enable_peer_access(int device, int other);

}  // namespace kvmesh::cuda_memory
