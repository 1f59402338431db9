// Addresses of a GPU that are reserved once, and memory that is mapped there piece by piece. In a
// build without CUDA no GPU has such memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "core/pieces.hpp"

namespace kvmesh::cuda_memory {

/// Whether the driver gives memory piece by piece: it may lack that, and containers may refuse it.
bool has_pieces(int device);
/// The unit of pieces: 2 MiB.
std::size_t piece_granule(int device);

/// Neither copied nor moved. Its device must have no work with the memory when a piece or the whole
/// range goes.
class AddressRange {
 public:
  /// Reserves addresses alone. REQUIRES: has_pieces; whole granules.
  AddressRange(int device, std::size_t size_bytes);
  /// Does not wait for the device.
  ~AddressRange();
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  void* data() const { return reinterpret_cast<void*>(data_); }
  std::size_t mapped_bytes() const;
  std::vector<ByteRange> pieces() const;

  /// Maps new memory of the device, which all GPUs that can may access.
  /// @throws Error, with nothing changed, if the device has less.
  void add(const ByteRange& piece);
  /// REQUIRES: `piece` is a mapped piece.
  void remove(const ByteRange& piece);
  /// Returns a file descriptor for the piece, which another process can import; -1 if the system
  /// refuses.
  int export_piece(const ByteRange& piece) const;
  /// Maps a piece of another process for this range's device. The caller keeps the descriptor.
  /// Returns false if the system refuses.
  bool import_piece(const ByteRange& piece, int descriptor);

 private:
  bool map(const ByteRange& piece, std::uint64_t memory, const std::vector<int>& devices);

  int device_;
  std::size_t size_bytes_;
  std::uint64_t data_ = 0;                       // CUdeviceptr
  std::map<ByteRange, std::uint64_t> memories_;  // CUmemGenericAllocationHandle
};

}  // namespace kvmesh::cuda_memory
