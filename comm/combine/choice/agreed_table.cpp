#include "comm/combine/choice/agreed_table.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <span>
#include <string>
#include <system_error>

#include "comm/combine/choice/combine_ways.hpp"
#include "comm/combine/choice/measure_ways.hpp"
#include "comm/combine/choice/table_text.hpp"
#include "comm/combine/peer/peer_window.hpp"
#include "comm/launcher/environment.hpp"
#include "core/check.hpp"
#include "core/cuda/memory.hpp"
#include "core/hash.hpp"
#include "core/posix/whole_file.hpp"
#include "kvmesh/version.h"

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOperation = "agree on a table of combine ways";

/// A rank, as it describes itself to the others. Trivially copyable.
struct Member {
  std::array<char, 64> device{};  // the GPU's model, or the host of a CPU rank
  bool uses_table = false;        // rank 0's value counts
};

Member this_member(const DeviceGroup& group, TableUse use, bool prefers_a_way) {
  const bool is_gpu = group.device().kind == DeviceKind::kCuda;
  Member mine;
  mine.uses_table = !prefers_a_way && use != TableUse::kOff && (is_gpu || use != TableUse::kAuto);
  const std::string name = is_gpu ? cuda_memory::model(group.device().index) : host_name();
  std::ranges::transform(name.substr(0, mine.device.size() - 1), mine.device.begin(),
                         [](char c) { return c == '\n' ? ' ' : c; });
  return mine;
}

/// All that the times depend on, as far as the ranks know it.
std::string key_of(const DeviceGroup& group, const CombineMeans& means,
                   const std::vector<Member>& members) {
  std::vector<std::string> devices;
  for (const Member& member : members) {
    if (devices.empty() || devices.back() != member.device.data()) {
      devices.emplace_back(member.device.data());
    }
  }
  const PeerWindow* in_host = group.host_window();
  const PeerRoom room = in_host ? in_host->room() : means.peer.value_or(PeerRoom{});
  return fmt::format(
      "kvmesh {}.{}.{}; {} ranks on {} hosts over {}; NCCL {}; windows {}+{}{}{}; {}",
      KVMESH_VERSION_MAJOR, KVMESH_VERSION_MINOR, KVMESH_VERSION_PATCH, means.ranks,
      means.hosts.hosts, group.comm().kind(), means.has_nccl ? nccl_version() : "none",
      room.word_slot_bytes, room.line_slot_bytes, means.shares_gpus ? " shared" : "",
      in_host ? " in hosts" : "", fmt::join(devices, ", "));
}

fs::path file_of(const fs::path& directory, std::string_view key) {
  return directory / fmt::format("combine-{:016x}.table", Hash().add_all(key).value());
}

/// The text of a good file; empty if there is none.
std::string stored_text(const fs::path& directory, std::string_view key) {
  if (directory.empty()) return {};
  const auto bytes = read_file(file_of(directory, key));
  if (!bytes) return {};
  std::string text(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  return table_from(key, text) ? text : std::string();
}

/// The table serves this run also if it cannot be kept for the next.
void store(const fs::path& directory, std::string_view key, const std::string& text) {
  if (directory.empty()) return;
  std::error_code failed;
  fs::create_directories(directory, failed);
  if (!failed) write_file_atomically(file_of(directory, key), std::as_bytes(std::span(text)));
}

std::string broadcast_text(Communicator& comm, std::string text) {
  std::uint64_t size = text.size();
  broadcast_value(comm, Rank{0}, size, kOperation);
  text.resize(size);
  if (size > 0) broadcast(comm, Rank{0}, std::as_writable_bytes(std::span(text)), kOperation);
  return text;
}

}  // namespace

TableUse table_use_of_environment() {
  constexpr std::array<std::string_view, 4> kNames{"off", "auto", "on", "new"};
  const char* given = std::getenv("KVMESH_COMBINE_TABLE");
  if (given == nullptr || *given == '\0') return TableUse::kAuto;
  const auto found = std::ranges::find(kNames, given);
  require(found != kNames.end(), "KVMESH_COMBINE_TABLE={} is none of {}", given,
          fmt::join(kNames, ", "));
  return static_cast<TableUse>(found - kNames.begin());
}

std::shared_ptr<const WayTable> agreed_way_table(DeviceGroup& group, TableUse use,
                                                 const fs::path& directory) {
  if (!has_choice_of_ways(group)) return nullptr;
  const CombineMeans means = CombineWays(group).means();
  Communicator& comm = group.comm();
  const std::vector<Member> members =
      all_gather_value(comm, this_member(group, use, means.preferred.has_value()), kOperation);
  if (!members.front().uses_table) return nullptr;

  const bool is_first = comm.rank() == Rank{0};
  // Some hosts may have windows and others none.
  const std::string key =
      broadcast_text(comm, is_first ? key_of(group, means, members) : std::string());
  const bool reads = is_first && use != TableUse::kNew;
  std::string text = broadcast_text(comm, reads ? stored_text(directory, key) : std::string());
  if (text.empty()) {
    const WayTable measured = measure_ways(group);
    text = broadcast_text(comm, is_first ? to_text(key, measured) : std::string());
    if (is_first) store(directory, key, text);
  }
  return std::make_shared<const WayTable>(table_from(key, text).value());
}

}  // namespace kvmesh
