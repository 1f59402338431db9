#include "core/cuda/address_range.hpp"
#include "kvmesh/error.hpp"

namespace kvmesh::cuda_memory {
namespace {

[[noreturn]] void absent() { throw Unsupported("this build has no CUDA backend"); }

}  // namespace

bool has_pieces(int) { return false; }
std::size_t piece_granule(int) { absent(); }
AddressRange::AddressRange(int device, std::size_t size_bytes)
    : device_(device), size_bytes_(size_bytes) {
  absent();
}
AddressRange::~AddressRange() = default;
std::size_t AddressRange::mapped_bytes() const { absent(); }
std::vector<ByteRange> AddressRange::pieces() const { absent(); }
void AddressRange::add(const ByteRange&) { absent(); }
void AddressRange::remove(const ByteRange&) { absent(); }
int AddressRange::export_piece(const ByteRange&) const { absent(); }
bool AddressRange::import_piece(const ByteRange&, int) { absent(); }

}  // namespace kvmesh::cuda_memory
