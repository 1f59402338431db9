// Page tables in the memory of a GPU, on the host.
#pragma once

#include <cstddef>
#include <span>

#include "core/cuda/memory.hpp"
#include "core/owners/growing_block.hpp"
#include "kvmesh/external_pool.hpp"

namespace kvmesh {

/// Copies page tables from a GPU. One thread at a time.
class TableReader {
 public:
  /// Returns `tables` with all arrays in host memory, good until the next call. If any is on the
  /// mesh's GPU, waits for `stream`.
  /// @throws InvalidArgument for tables on another device, and if `stream` is captured, with
  /// nothing enqueued; Timeout, NcclError, Error.
  PageTables read(const PageTables& tables, Mesh& mesh, Stream stream);

 private:
  struct Pinned {
    cuda_memory::OwnedPinnedMemory memory{};
    std::size_t bytes = 0;

    void* data() const { return memory.get(); }
    std::size_t size_bytes() const { return bytes; }
  };

  /// Makes each array that of its copy.
  void copy(std::span<std::span<const std::int32_t>* const> arrays, std::size_t bytes, Mesh& mesh,
            Stream stream);

  GrowingBlock<Pinned> memory_;
};

}  // namespace kvmesh
