#include <fmt/format.h>

#include <cstring>

#include "comm/combine/natural_lse.hpp"
#include "comm/combine/nccl/combine_params.hpp"
#include "comm/common/named.hpp"
#include "comm/nccl/state.hpp"
#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/device_buffer.hpp"
#include "core/cuda/device_scope.hpp"
#include "core/owners/unique_handle.hpp"

namespace kvmesh {
namespace {

static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId));

/// On the current device, before the device waits for a peer: a load may wait for the device.
void load_group_kernels() {
  check(cuda::load_combine_kernels(), "loading the combine's kernels");
  check(cuda::load_natural_kernel(), "loading the kernel that converts LSEs");
}

/// Sends a byte between all pairs and does one collective of each kind: NCCL connects at first use,
/// so a group that cannot work fails here and not in the first step of a model.
void connect_everyone(NcclGroup::State& state) {
  constexpr std::string_view kOperation = "connect an NCCL group";
  const auto size = static_cast<std::size_t>(state.size);
  const cuda::DeviceBuffer memory(2 * size * sizeof(float));
  auto* out = memory.as<float>();
  auto* in = out + size;
  check(cudaMemset(out, 0, memory.size_bytes()), "clearing device memory");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  const UniqueHandle<cudaStream_t, cudaStreamDestroy> owned_stream(stream);
  state.grouped(kOperation, [&] {
    ncclResult_t code = ncclSuccess;
    for (int r = 0; r < state.size && NcclGroup::State::is_good(code); ++r) {
      code = ncclSend(out + r, 1, ncclFloat, r, state.comm, stream);
      if (NcclGroup::State::is_good(code))
        code = ncclRecv(in + r, 1, ncclFloat, r, state.comm, stream);
    }
    return code;
  });
  state.poll(ncclAllGather(out, in, 1, ncclFloat, state.comm, stream), kOperation);
  state.poll(ncclReduceScatter(in, out, 1, ncclFloat, ncclSum, state.comm, stream), kOperation);
  state.poll(ncclAllReduce(in, in, 1, ncclFloat, ncclMax, state.comm, stream), kOperation);
  state.wait(stream, kOperation);
}

std::unique_ptr<NcclGroup::State> connect(const NcclUniqueId& id, Rank rank, int size, int device,
                                          std::chrono::milliseconds deadline,
                                          std::vector<Rank> names = {}) {
  require(size > 0 && rank.value >= 0 && rank.value < size, "NcclGroup: rank {} of {} ranks",
          rank.value, size);
  auto state = std::make_unique<NcclGroup::State>();
  state->rank = rank;
  state->size = size;
  state->device = device;
  state->deadline = deadline;
  state->names = std::move(names);
  const DeviceScope scope(device);
  load_group_kernels();
  ncclUniqueId nccl_id;
  std::memcpy(&nccl_id, id.bytes.data(), sizeof(nccl_id));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  const ncclResult_t code =
      ncclCommInitRankConfig(&state->comm, size, nccl_id, rank.value, &config);
  state->poll(code, "make an NCCL group");
  connect_everyone(*state);
  return state;
}

/// A barrier comes first, for its deadline and names: NCCL cannot name the rank that is missing.
NcclUniqueId agree_on_id(Communicator& bootstrap) {
  NcclUniqueId id;
  barrier(bootstrap, "meet for an NCCL group");
  if (bootstrap.rank().value == 0) id = make_nccl_unique_id();
  broadcast(bootstrap, Rank{0}, std::as_writable_bytes(std::span(id.bytes)), "give out an NCCL id");
  return id;
}

}  // namespace

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "unknown";
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

NcclUniqueId make_nccl_unique_id() {
  ncclUniqueId made;
  const ncclResult_t code = ncclGetUniqueId(&made);
  if (code != ncclSuccess) {
    throw NcclError(Rank{0}, "make an NCCL id", ncclGetErrorString(code));
  }
  NcclUniqueId id;
  std::memcpy(id.bytes.data(), &made, sizeof(made));
  return id;
}

NcclGroup::NcclGroup(Communicator& bootstrap, int device)
    : NcclGroup(connect(agree_on_id(bootstrap), bootstrap.rank(), bootstrap.size(), device,
                        bootstrap.deadline(), names_in(bootstrap))) {}

NcclGroup::NcclGroup(const NcclUniqueId& id, Rank rank, int size, int device,
                     std::chrono::milliseconds deadline)
    : NcclGroup(connect(id, rank, size, device, deadline)) {}

NcclGroup::NcclGroup(std::unique_ptr<State> state) : state_(std::move(state)) {}

NcclGroup NcclGroup::borrow(void* nccl_comm, std::chrono::milliseconds deadline) {
  require(nccl_comm != nullptr, "NcclGroup::borrow: no ncclComm_t given");
  auto state = std::make_unique<State>();
  state->is_owned = false;
  state->comm = static_cast<ncclComm_t>(nccl_comm);
  state->deadline = deadline;
  constexpr std::string_view kOperation = "borrow an NCCL communicator";
  state->poll(ncclCommUserRank(state->comm, &state->rank.value), kOperation);
  state->poll(ncclCommCount(state->comm, &state->size), kOperation);
  state->poll(ncclCommCuDevice(state->comm, &state->device), kOperation);
  const DeviceScope scope(state->device);
  load_group_kernels();
  return NcclGroup(std::move(state));
}

NcclGroup::~NcclGroup() = default;
NcclGroup::NcclGroup(NcclGroup&&) noexcept = default;
NcclGroup& NcclGroup::operator=(NcclGroup&&) noexcept = default;

Rank NcclGroup::rank() const { return state_->rank; }
int NcclGroup::size() const { return state_->size; }
int NcclGroup::device() const { return state_->device; }
bool NcclGroup::is_owned() const { return state_->is_owned; }
void* NcclGroup::handle() const { return state_->comm; }
std::chrono::milliseconds NcclGroup::deadline() const { return state_->deadline; }
void NcclGroup::set_deadline(std::chrono::milliseconds deadline) { state_->deadline = deadline; }
void NcclGroup::set_names(std::vector<Rank> names) {
  require(std::ssize(names) == state_->size, "NcclGroup: {} names of {} ranks", names.size(),
          state_->size);
  state_->names = std::move(names);
}
void NcclGroup::close() { state_->close(); }

void NcclGroup::wait(Stream stream, std::string_view operation) {
  state_->wait(static_cast<cudaStream_t>(stream.handle), operation);
}

void NcclGroup::wait_until(const std::function<bool()>& is_done, std::string_view operation) {
  state_->wait_until(is_done, operation);
}

}  // namespace kvmesh
