#include "comm/combine/peer/peer_window.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <map>
#include <new>
#include <optional>
#include <utility>

#include "comm/combine/peer/kernels/peer_gather_params.hpp"
#include "comm/combine/peer/kernels/peer_params.hpp"
#include "core/cuda/device_buffer.hpp"
#include "core/cuda/device_wait.hpp"
#include "core/cuda/memory.hpp"
#include "core/owners/unique_handle.hpp"

namespace kvmesh {
namespace {

constexpr std::string_view kMake = "make windows";
constexpr std::string_view kLeave = "leave the windows";

// Arrivals come first in a window; the slots of words, then those of lines.
constexpr std::int64_t kArrivalsBytes = 4096;
static_assert(kMostPeerRanks * kArrivalBytes <= kArrivalsBytes);

constexpr std::size_t kSlotAlignment = 128;  // a line's

std::size_t slot_of(std::size_t bytes) { return bytes / 2 / kSlotAlignment * kSlotAlignment; }

PeerRoom room_in(std::size_t size_bytes) {
  if (size_bytes <= kArrivalsBytes) return {};
  const std::size_t slots = size_bytes - kArrivalsBytes;
  return {.word_slot_bytes = slot_of(slots / 4), .line_slot_bytes = slot_of(slots / 4 * 3)};
}

/// Whether stores from one GPU arrive whole at the other.
bool is_fast_link(int device, const std::array<char, 16>& other) {
  if (cuda_memory::identity(device) == other) return true;
  for (int peer = 0; peer < cuda_memory::device_count(); ++peer) {
    if (cuda_memory::identity(peer) != other) continue;
    int has_atomics = 0;  // which only NVLink has
    const cudaError_t status =
        cudaDeviceGetP2PAttribute(&has_atomics, cudaDevP2PAttrNativeAtomicSupported, device, peer);
    if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
    return status == cudaSuccess && has_atomics != 0;
  }
  return false;
}

/// The description that a rank sends of itself: its window, and its GPU.
struct Endpoint {
  MemoryHandle handle;
  bool has_memory = false;
  std::array<char, 16> gpu{};
  std::array<char, 48> host{};  // NCCL_HOSTID: by which one machine plays several
};

Endpoint endpoint_of(const SharedMemory& memory, int device) {
  Endpoint mine{memory.handle(), true, cuda_memory::identity(device), {}};
  if (const char* host = std::getenv("NCCL_HOSTID")) {
    std::ranges::copy(std::string_view(host).substr(0, mine.host.size()), mine.host.begin());
  }
  return mine;
}

}  // namespace

/// The memory on this rank alone that kernels write faults to and read epochs from.
struct PeerWindow::Fault {
  Fault() : device(kMostPeerBlocks * sizeof(std::uint32_t) + sizeof(std::uint32_t)) {
    kvmesh::check(cudaMemset(device.data(), 0, device.size_bytes()), kMake);
    void* host = nullptr;
    kvmesh::check(cudaHostAlloc(&host, sizeof(PeerFault), cudaHostAllocPortable), kMake);
    fault.reset(new (host) PeerFault{});
  }
  std::uint32_t* epochs() const { return device.as<std::uint32_t>(); }
  std::uint32_t* is_broken() const { return epochs() + kMostPeerBlocks; }
  bool is_set() const {
    return std::atomic_ref(fault->is_set).load(std::memory_order_acquire) != 0;
  }

  cuda::DeviceBuffer device;
  UniqueHandle<PeerFault*, cudaFreeHost> fault;
};

PeerWindow::PeerWindow(Communicator& comm, Device device, std::size_t size_bytes)
    : comm_(comm),
      device_(device),
      room_(room_in(size_bytes)),
      exceptions_(std::uncaught_exceptions()),
      maps_(static_cast<std::size_t>(comm.size())) {
  cuda_memory::use_device(device.index);
  fault_ = std::make_unique<Fault>();
  kvmesh::check(cuda::load_peer_kernels(), "loading the combine's kernels");
  kvmesh::check(cuda::load_peer_gather_kernels(), "loading the query gather's kernels");
  memory_ = std::make_unique<SharedMemory>(device, size_bytes, Sharing::kNode);
  kvmesh::check(cudaMemset(memory_->data(), 0, memory_->size_bytes()), kMake);
  kvmesh::check(cudaDeviceSynchronize(), kMake);
}

PeerWindow::Made PeerWindow::make(Communicator& comm, Device device, std::size_t size_bytes) {
  if (comm.size() > kMostPeerRanks) return {nullptr, {PeerRefusal::kTooManyRanks, {}, {}}};
  Made made;
  Endpoint mine;
  try {
    made.window.reset(new PeerWindow(comm, device, size_bytes));
    mine = endpoint_of(*made.window->memory_, device.index);
  } catch (const CudaError&) {
    // The others learn it from the handles, and do not wait for a rank that has gone.
  }
  const std::vector<Endpoint> all = all_gather_value(comm, mine, kMake);
  const auto without = std::ranges::find(all, false, &Endpoint::has_memory);
  PeerRefused refused;
  if (without != all.end()) {
    const Rank rank{static_cast<std::int32_t>(without - all.begin())};
    refused = {PeerRefusal::kNoMemory, rank, rank};
  } else {
    refused = made.window->map(all);
  }
  // Every rank's opinion, of which the first counts. It also keeps the owners here until their
  // handles have been used.
  const std::vector<PeerRefused> opinions = all_gather_value(comm, refused, kMake);
  const auto first = std::ranges::find_if(
      opinions, [](const PeerRefused& each) { return each.reason != PeerRefusal::kNone; });
  if (first == opinions.end()) return made;
  made.refused = *first;
  if (made.window) made.window->maps_.clear();
  barrier(comm, kMake);  // all have unmapped
  if (made.window) made.window->is_alone_ = true;
  made.window.reset();
  return made;
}

template <class Endpoints>
PeerRefused PeerWindow::map(const Endpoints& all) {
  std::map<std::array<char, 16>, int> ranks_of_gpu;
  for (const Endpoint& endpoint : all) {
    ranks_per_gpu_ = std::max(ranks_per_gpu_, ++ranks_of_gpu[endpoint.gpu]);
  }
  count_blocks();
  for (std::size_t r = 0; r < all.size(); ++r) {
    const Rank peer{static_cast<std::int32_t>(r)};
    if (peer == rank()) continue;
    const Endpoint& mine = all[static_cast<std::size_t>(rank().value)];
    if (!mine.handle.owner.same_host(all[r].handle.owner) || mine.host != all[r].host) {
      return {PeerRefusal::kOtherHost, rank(), peer};
    }
    maps_[r] = map_memory(all[r].handle, device_);
    if (maps_[r] == nullptr) return {PeerRefusal::kNotMapped, rank(), peer};
    if (!is_fast_link(device_.index, all[r].gpu)) return {PeerRefusal::kSlowLink, rank(), peer};
  }
  return {};
}

// Two blocks per SM, and as many of the next kernel, fit beside one another. Where ranks share a
// GPU they must leave room for what the others run before they combine: a kernel that waits gives
// up no SM.
void PeerWindow::count_blocks() {
  int processors = 1;
  kvmesh::check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device_.index),
                kMake);
  const int most = ranks_per_gpu_ == 1 ? 2 * processors : processors / (4 * ranks_per_gpu_);
  most_blocks_ = std::clamp(most, 1, kMostPeerBlocks - 1);
}

PeerWindow::~PeerWindow() {
  const bool is_whole = !is_alone_ && !is_broken_ && fault_ && !fault_->is_set() &&
                        std::uncaught_exceptions() <= exceptions_;
  if (!is_whole) return;
  try {
    wait_until(whole_device_done(device_.index), {rank(), comm_.deadline(), kLeave});
    barrier(comm_, kLeave);  // no kernel stores into a window any more
    maps_.clear();
    barrier(comm_, kLeave);
  } catch (const std::exception&) {
    // This rank has had its results. A rank that still waits for some has an error of its own.
  }
}

PeerWindowView PeerWindow::view() const {
  PeerWindowView view{};
  for (std::size_t r = 0; r < maps_.size(); ++r) {
    void* const window = static_cast<int>(r) == rank().value ? memory_->data() : maps_[r].get();
    view.windows[r] = static_cast<unsigned char*>(window);
  }
  view.epochs = fault_->epochs();
  view.is_broken = fault_->is_broken();
  view.fault = fault_->fault.get();
  view.deadline_ns = static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(device_deadline()).count());
  view.shares_gpus = shares_gpus();
  return view;
}

std::int64_t PeerWindow::slots_offset(RowForm form) const {
  const auto words = static_cast<std::int64_t>(2 * room_.word_slot_bytes);
  return kArrivalsBytes + (form == RowForm::kWords ? 0 : words);
}

std::int64_t PeerWindow::slot_bytes(RowForm form) const {
  return static_cast<std::int64_t>(form == RowForm::kWords ? room_.word_slot_bytes
                                                           : room_.line_slot_bytes);
}

// A kernel names the rank that is late, which the host's own wait cannot: so it is the first to
// give up.
std::chrono::milliseconds PeerWindow::device_deadline() const { return comm_.deadline() * 7 / 8; }

void PeerWindow::check(std::string_view operation) {
  if (is_broken_) {
    throw BrokenGroup(fmt::format(
        "{}: the windows of this group failed before and cannot be used again", operation));
  }
  if (!fault_->is_set()) return;
  is_broken_ = true;
  const PeerFault& fault = *fault_->fault;
  throw Timeout(
      comm_.name_of(rank()), {comm_.name_of(Rank{fault.late})},
      fmt::format("{} ({}run {} of its plan, {})",
                  fault.operation == PeerOperation::kCombine ? "combine" : "gather_queries",
                  fault.layer < 0 ? "" : fmt::format("layer {}, ", fault.layer), fault.run,
                  fault.phase == PeerPhase::kRows ? "rows" : "arrival"),
      device_deadline());
}

void PeerWindow::wait(Stream stream, std::string_view operation) {
  wait_until([&] { return cuda_memory::is_done(stream, operation); },
             {comm_.name_of(rank()), comm_.deadline(), operation});
  check(operation);
}

}  // namespace kvmesh
