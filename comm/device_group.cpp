#include "kvmesh/device_group.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <vector>

#include "comm/combine/choice/agreed_table.hpp"
#include "comm/combine/peer/peer_window.hpp"
#include "comm/common/named.hpp"
#include "comm/common/subset.hpp"
#include "core/check.hpp"
#include "core/cuda/device_wait.hpp"
#include "core/cuda/memory.hpp"
#include "core/posix/cache_directory.hpp"

namespace kvmesh {
namespace {

// Collective. NCCL refuses two ranks on one GPU, unless NCCL_HOSTID says that they are on two
// hosts.
bool nccl_takes(Communicator& comm, Device gpu) {
  using Endpoint = std::array<char, 64>;  // the GPU, and NCCL_HOSTID
  Endpoint mine{};
  const auto end = std::ranges::copy(cuda_memory::identity(gpu.index), mine.begin()).out;
  if (const char* host = std::getenv("NCCL_HOSTID")) {
    const std::string_view name(host);
    std::ranges::copy(name.substr(0, static_cast<std::size_t>(mine.end() - end)), end);
  }
  std::vector<Endpoint> all = all_gather_value(comm, mine, "gpus");
  std::ranges::sort(all);
  return std::ranges::adjacent_find(all) == all.end();
}

}  // namespace

DeviceGroup::DeviceGroup(std::shared_ptr<Communicator> comm, Device device, bool makes_nccl,
                         std::size_t peer_window_bytes)
    : comm_(std::move(comm)),
      device_(device),
      hosts_{.per_host = comm_->size()},
      exceptions_(std::uncaught_exceptions()),
      window_bytes_(device.kind == DeviceKind::kCuda ? peer_window_bytes : 0) {
  const bool may_have = makes_nccl && device.kind == DeviceKind::kCuda && !nccl_version().empty();
  if (may_have && nccl_takes(*comm_, device_)) {
    nccl_ = std::make_unique<NcclGroup>(*comm_, device_.index);
  }
  if (window_bytes_ == 0) return;
  PeerWindow::Made made = PeerWindow::make(*comm_, device_, window_bytes_);
  peer_window_ = std::move(made.window);
  no_peer_window_ = peer_window_ ? std::string() : made.refused.message(*comm_);
}

DeviceGroup::~DeviceGroup() { leave_together(); }

HostLayout host_layout_of(std::span<const std::uint64_t> host_of_rank) {
  const auto ranks = static_cast<int>(host_of_rank.size());
  const HostLayout one{.per_host = ranks};
  const auto first_of_second = std::ranges::find_if(
      host_of_rank, [&](std::uint64_t host) { return host != host_of_rank.front(); });
  const auto per_host = static_cast<int>(first_of_second - host_of_rank.begin());
  if (per_host == 0 || ranks % per_host != 0) return one;
  std::vector<std::uint64_t> hosts;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::uint64_t host = host_of_rank[static_cast<std::size_t>(rank)];
    if (rank % per_host == 0) {
      if (std::ranges::find(hosts, host) != hosts.end()) return one;
      hosts.push_back(host);
    } else if (host != hosts.back()) {
      return one;
    }
  }
  return {.hosts = ranks / per_host, .per_host = per_host};
}

void DeviceGroup::set_hosts(const HostLayout& hosts) {
  require(hosts.hosts > 0 && hosts.per_host > 0 && hosts.hosts * hosts.per_host == comm_->size(),
          "device group: {} hosts of {} ranks, the group has {} ranks", hosts.hosts, hosts.per_host,
          comm_->size());
  hosts_ = hosts;
  host_window_ = nullptr;
  if (window_bytes_ == 0 || peer_window_ || !hosts.is_hierarchy()) return;
  std::vector<Rank> neighbours;
  for (int r = 0; r < comm_->size(); ++r) {
    if (r / hosts.per_host == comm_->rank().value / hosts.per_host) neighbours.push_back(Rank{r});
  }
  host_comm_ = std::make_unique<Subset>(*comm_, neighbours);
  host_window_ = PeerWindow::make(*host_comm_, device_, window_bytes_).window;
  if (host_window_ && host_window_->shares_gpus()) host_window_ = nullptr;
}

void DeviceGroup::prepare_ways() {
  way_table_ = nullptr;
  way_table_ = agreed_way_table(*this, table_use_of_environment(), default_cache_directory());
}

void DeviceGroup::use_nccl(NcclGroup group) {
  require(device_.kind == DeviceKind::kCuda, "device group: an NCCL group for ranks on the CPU");
  require(nccl_ == nullptr, "device group: it has an NCCL group already");
  require(group.size() == comm_->size() && group.rank() == comm_->rank() &&
              group.device() == device_.index,
          "device group: an NCCL group with rank {} of {} on GPU {}, this is rank {} of {} on {}",
          group.rank().value, group.size(), group.device(), comm_->rank().value, comm_->size(),
          device_.index);
  exceptions_ = std::uncaught_exceptions();
  nccl_ = std::make_unique<NcclGroup>(std::move(group));
  nccl_->set_names(names_in(*comm_));
}

// A rank's own device may be done before the others have what it sends: threads of NCCL's send it
// over networks, and an abort stops them. When all devices are done nothing is under way any more.
void DeviceGroup::leave_together() noexcept {
  constexpr std::string_view kOperation = "leave the mesh";
  const bool is_whole = nccl_ && nccl_->is_owned() && nccl_->handle() != nullptr;
  if (!is_whole || std::uncaught_exceptions() > exceptions_) return;
  try {
    nccl_->set_deadline(comm_->deadline());
    nccl_->wait_until(whole_device_done(device_.index), kOperation);
    barrier(*comm_, kOperation);
  } catch (const std::exception&) {
    // This rank has had its results. A rank that still waits for some has an error of its own.
  }
}

void DeviceGroup::wait(Stream stream, std::string_view operation) {
  if (device_.kind == DeviceKind::kCpu) return;
  wait_until([&] { return cuda_memory::is_done(stream, operation); }, operation);
}

// A kernel whose wait for a peer timed out ends like any other; only its note shows it.
void DeviceGroup::wait_until(const std::function<bool()>& is_done, std::string_view operation) {
  const auto is_done_well = [&] {
    const bool done = is_done();
    for (PeerWindow* window : {peer_window_.get(), host_window_.get()}) {
      if (window != nullptr) window->check(operation);
    }
    return done;
  };
  if (!nccl_)
    return kvmesh::wait_until(is_done_well,
                              {comm_->name_of(comm_->rank()), comm_->deadline(), operation});
  nccl_->set_deadline(comm_->deadline());
  nccl_->wait_until(is_done_well, operation);
}

}  // namespace kvmesh
