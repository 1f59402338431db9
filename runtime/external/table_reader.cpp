#include "runtime/external/table_reader.hpp"

#include <vector>

#include "core/check.hpp"

namespace kvmesh {
namespace {

using Numbers = std::span<const std::int32_t>;

/// Returns whether an array of page tables must be copied from `gpu`.
bool is_on(Device gpu, Numbers array) {
  if (array.empty()) return false;
  const std::optional<int> index = cuda_memory::gpu_of(array.data());
  require(!index || *index == gpu.index,
          "page tables: an array of {} numbers is in the memory of GPU {}, the mesh's device is {}",
          array.size(), index.value_or(0), gpu);
  return index.has_value();
}

}  // namespace

PageTables TableReader::read(const PageTables& tables, Mesh& mesh, Stream stream) {
  if (tables.device == Device{}) return tables;
  require(tables.device == mesh.device(), "page tables: in {}, the mesh's device is {}",
          tables.device, mesh.device());
  require(!cuda_memory::is_captured(stream),
          "page tables: the host reads them from the GPU, and the stream is being captured");
  PageTables on_host = tables;
  std::vector<Numbers*> there;
  std::size_t bytes = 0;
  const auto note = [&](Numbers& array) {
    if (!is_on(tables.device, array)) return;
    there.push_back(&array);
    bytes += array.size_bytes();
  };
  for (Numbers* array : {&on_host.q_indptr, &on_host.kv_lens, &on_host.indptr, &on_host.indices,
                         &on_host.appended, &on_host.token_lists}) {
    note(*array);
  }
  if (on_host.logical) note(*on_host.logical);
  if (there.empty()) return on_host;
  copy(there, bytes, mesh, stream);
  return on_host;
}

void TableReader::copy(std::span<Numbers* const> arrays, std::size_t bytes, Mesh& mesh,
                       Stream stream) {
  memory_.reserve(bytes, [&](std::size_t size) {
    return Pinned{cuda_memory::allocate_pinned(mesh.device().index, size), size};
  });
  auto* to = static_cast<std::int32_t*>(memory_.data());
  for (Numbers* array : arrays) {
    cuda_memory::copy_bytes_on(stream, to, array->data(), array->size_bytes());
    *array = {to, array->size()};
    to += array->size();
  }
  mesh.wait(stream, "read page tables");
}

}  // namespace kvmesh
