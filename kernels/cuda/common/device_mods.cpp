#include "kernels/cuda/common/device_mods.hpp"

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
    : mods_(emit_cuda(score, mask)) {}

void DeviceMods::send(cudaStream_t stream) {
  std::vector<std::uint64_t> versions;
  std::size_t size = 0;
  for (const ModBuffer& buffer : mods_.buffers) {
    versions.push_back(version_of(buffer));
    size += Upload::bytes_of<std::byte>(bytes_of(buffer).size());
  }
  if (versions == sent_versions_) return;
  upload_.begin(size);
  for (std::size_t i = 0; i < mods_.buffers.size(); ++i) {
    const ModBuffer& buffer = mods_.buffers[i];
    buffers_.views[i] = {upload_.add(bytes_of(buffer)), static_cast<int>(buffer.size)};
  }
  upload_.send(stream);
  sent_versions_ = std::move(versions);
}

}  // namespace kvmesh::cuda
