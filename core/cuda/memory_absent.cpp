#include "core/cuda/memory.hpp"
#include "kvmesh/error.hpp"

namespace kvmesh::cuda_memory {
namespace {

[[noreturn]] void absent() {
  throw Unsupported("this build has no CUDA backend: use the device 'cpu' or 'auto'");
}

}  // namespace

// No block or stream is ever made.
void free_memory(void*) {}
void free_pinned_memory(void*) {}
void destroy_stream(void*) {}

int device_count() { return 0; }
std::array<char, 16> identity(int) { absent(); }
int compute_capability(int) { absent(); }
std::string model(int) { absent(); }
void use_device(int) { absent(); }
void synchronize_device() { absent(); }
bool is_done(Stream, std::string_view) { absent(); }
void copy_bytes(void*, const void*, std::size_t) { absent(); }
void copy_bytes_on(Stream, void*, const void*, std::size_t) { absent(); }
std::optional<int> gpu_of(const void*) { absent(); }
bool is_captured(Stream) { absent(); }
void copy_rows(const Rows&, Stream) { absent(); }
void fill(void*, unsigned char, std::size_t, Stream) { absent(); }
std::size_t free_bytes(int) { absent(); }
OwnedMemory allocate(int, std::size_t) { absent(); }
OwnedPinnedMemory allocate_pinned(int, std::size_t) { absent(); }
OwnedStream make_stream(int) { absent(); }
bool export_to(void*, std::array<std::byte, 64>&) { absent(); }
std::shared_ptr<void> import_from(const std::array<std::byte, 64>&, int) { absent(); }
bool enable_peer_access(int, int) { absent(); }

}  // namespace kvmesh::cuda_memory
