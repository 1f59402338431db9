#include "kernels/cuda/device_mods.hpp"

namespace kvmesh::cuda {
namespace {

std::span<const std::byte> bytes_of(const ModBuffer& buffer) {
  const std::size_t element = buffer.type == ModType::kBool ? 1 : 4;
  return {static_cast<const std::byte*>(buffer.data),
          static_cast<std::size_t>(buffer.size) * element};
}

std::uint64_t version_of(const ModBuffer& buffer) { return buffer.version ? *buffer.version : 0; }

}  // namespace

DeviceMods::DeviceMods(const ModGraph& score, const ModGraph& mask)
    : mods_(emit_cuda(score, mask)) {
  for (std::size_t i = 0; i < mods_.buffers.size(); ++i) {
    const ModBuffer& buffer = mods_.buffers[i];
    data_.push_back(upload(bytes_of(buffer)));
    versions_.push_back(version_of(buffer));
    buffers_.views[i] = {data_.back().data(), static_cast<int>(buffer.size)};
  }
}

void DeviceMods::refresh(cudaStream_t stream) {
  for (std::size_t i = 0; i < mods_.buffers.size(); ++i) {
    const std::uint64_t version = version_of(mods_.buffers[i]);
    if (version == versions_[i]) continue;
    // From pageable memory: the runtime has taken the bytes when it returns.
    const std::span<const std::byte> bytes = bytes_of(mods_.buffers[i]);
    check(cudaMemcpyAsync(data_[i].data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice,
                          stream),
          "sending what a mod captured");
    versions_[i] = version;
  }
}

}  // namespace kvmesh::cuda
