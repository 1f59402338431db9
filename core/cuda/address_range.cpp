#include "core/cuda/address_range.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "core/cuda/check.hpp"
#include "core/cuda/memory.hpp"

namespace kvmesh::cuda_memory {
namespace {

/// From the driver that is there: programs do not link it, so that they start where there is none.
template <class Function>
Function find(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kSince = 12000;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, kSince, cudaEnableDefault, &found);
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Function>(function)
             : nullptr;
}

struct Driver {
  decltype(&cuGetErrorString) error_string = find<decltype(&cuGetErrorString)>("cuGetErrorString");
  decltype(&cuDeviceGetAttribute) attribute =
      find<decltype(&cuDeviceGetAttribute)>("cuDeviceGetAttribute");
  decltype(&cuMemAddressReserve) reserve =
      find<decltype(&cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(&cuMemAddressFree) free = find<decltype(&cuMemAddressFree)>("cuMemAddressFree");
  decltype(&cuMemCreate) create = find<decltype(&cuMemCreate)>("cuMemCreate");
  decltype(&cuMemRelease) release = find<decltype(&cuMemRelease)>("cuMemRelease");
  decltype(&cuMemMap) map = find<decltype(&cuMemMap)>("cuMemMap");
  decltype(&cuMemUnmap) unmap = find<decltype(&cuMemUnmap)>("cuMemUnmap");
  decltype(&cuMemSetAccess) set_access = find<decltype(&cuMemSetAccess)>("cuMemSetAccess");
  decltype(&cuMemGetAllocationGranularity) granularity =
      find<decltype(&cuMemGetAllocationGranularity)>("cuMemGetAllocationGranularity");
  decltype(&cuMemExportToShareableHandle) export_to =
      find<decltype(&cuMemExportToShareableHandle)>("cuMemExportToShareableHandle");
  decltype(&cuMemImportFromShareableHandle) import_from =
      find<decltype(&cuMemImportFromShareableHandle)>("cuMemImportFromShareableHandle");

  bool is_complete() const {
    return error_string && attribute && reserve && free && create && release && map && unmap &&
           set_access && granularity && export_to && import_from;
  }
};

const Driver& driver() {
  static const Driver driver;
  return driver;
}

void check_driver(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) return;
  const char* why = nullptr;
  static_cast<void>(driver().error_string(status, &why));
  throw Error(fmt::format("{}: {} ({})", what, why ? why : "unknown", static_cast<int>(status)));
}

constexpr CUmemAllocationHandleType kDescriptor = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

CUmemAllocationProp properties(int device, CUmemAllocationHandleType handles) {
  CUmemAllocationProp all{};
  all.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  all.requestedHandleTypes = handles;
  all.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
  return all;
}

/// Without the right to export it, where the system does not give that.
CUresult create(CUmemGenericAllocationHandle& memory, std::size_t bytes, int device) {
  for (const CUmemAllocationHandleType handles : {kDescriptor, CU_MEM_HANDLE_TYPE_NONE}) {
    const CUmemAllocationProp how = properties(device, handles);
    const CUresult status = driver().create(&memory, bytes, &how, 0);
    if (status == CUDA_SUCCESS || status == CUDA_ERROR_OUT_OF_MEMORY) return status;
    if (handles == CU_MEM_HANDLE_TYPE_NONE) return status;
  }
  return CUDA_ERROR_UNKNOWN;
}

/// `device`, and the others that can access its memory.
std::vector<int> readers_of(int device) {
  std::vector<int> devices{device};
  for (int other = 0; other < device_count(); ++other) {
    int possible = 0;
    if (other != device && cudaDeviceCanAccessPeer(&possible, other, device) == cudaSuccess &&
        possible != 0)
      devices.push_back(other);
  }
  return devices;
}

}  // namespace

bool has_pieces(int device) {
  use_device(device);
  check(cudaFree(nullptr), "starting the device");
  if (!driver().is_complete()) return false;
  int has = 0;
  if (driver().attribute(&has, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device) !=
          CUDA_SUCCESS ||
      has == 0)
    return false;
  try {
    const std::size_t granule = piece_granule(device);
    AddressRange range(device, granule);
    range.add({0, granule});
    return true;
  } catch (const Error&) {
    return false;
  }
}

std::size_t piece_granule(int device) {
  const CUmemAllocationProp how = properties(device, kDescriptor);
  std::size_t granule = 0;
  check_driver(driver().granularity(&granule, &how, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
               "asking for the granularity of memory");
  return granule;
}

AddressRange::AddressRange(int device, std::size_t size_bytes)
    : device_(device), size_bytes_(size_bytes) {
  use_device(device);
  check(cudaFree(nullptr), "starting the device");
  CUdeviceptr data = 0;
  check_driver(driver().reserve(&data, size_bytes, 0, 0, 0), "reserving addresses");
  data_ = data;
}

// The errors are ignored: the process may already have shut CUDA down.
AddressRange::~AddressRange() {
  while (!memories_.empty()) remove(memories_.begin()->first);
  static_cast<void>(driver().free(data_, size_bytes_));
}

std::size_t AddressRange::mapped_bytes() const {
  std::size_t bytes = 0;
  for (const auto& [piece, memory] : memories_) bytes += piece.last - piece.first;
  return bytes;
}

std::vector<ByteRange> AddressRange::pieces() const {
  std::vector<ByteRange> pieces;
  for (const auto& [piece, memory] : memories_) pieces.push_back(piece);
  return pieces;
}

bool AddressRange::map(const ByteRange& piece, std::uint64_t memory,
                       const std::vector<int>& devices) {
  const std::size_t bytes = piece.last - piece.first;
  if (driver().map(data_ + piece.first, bytes, 0, memory, 0) != CUDA_SUCCESS) return false;
  std::vector<CUmemAccessDesc> access;
  for (const int device : devices) {
    access.push_back({{CU_MEM_LOCATION_TYPE_DEVICE, {device}}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE});
  }
  if (driver().set_access(data_ + piece.first, bytes, access.data(), access.size()) ==
      CUDA_SUCCESS) {
    memories_.emplace(piece, memory);
    return true;
  }
  static_cast<void>(driver().unmap(data_ + piece.first, bytes));
  return false;
}

void AddressRange::add(const ByteRange& piece) {
  CUmemGenericAllocationHandle memory = 0;
  check_driver(create(memory, piece.last - piece.first, device_), "allocating a piece of memory");
  if (map(piece, memory, readers_of(device_))) return;
  static_cast<void>(driver().release(memory));
  throw Error("mapping a piece of memory: the driver refuses");
}

void AddressRange::remove(const ByteRange& piece) {
  const auto at = memories_.find(piece);
  static_cast<void>(driver().unmap(data_ + piece.first, piece.last - piece.first));
  static_cast<void>(driver().release(at->second));
  memories_.erase(at);
}

int AddressRange::export_piece(const ByteRange& piece) const {
  int descriptor = -1;
  const CUresult status = driver().export_to(&descriptor, memories_.at(piece), kDescriptor, 0);
  return status == CUDA_SUCCESS ? descriptor : -1;
}

bool AddressRange::import_piece(const ByteRange& piece, int descriptor) {
  CUmemGenericAllocationHandle memory = 0;
  auto* const handle = reinterpret_cast<void*>(static_cast<std::uintptr_t>(descriptor));
  if (driver().import_from(&memory, handle, kDescriptor) != CUDA_SUCCESS) return false;
  if (map(piece, memory, {device_})) return true;
  static_cast<void>(driver().release(memory));
  return false;
}

}  // namespace kvmesh::cuda_memory
