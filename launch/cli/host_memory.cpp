#include "launch/cli/host_memory.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "launch/cli/agree.hpp"
#include "launch/cli/report.hpp"

namespace kvmesh::launch {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::infinity();

// The number after `key` in a file like /proc/meminfo; kUnknown if there is none.
double number_after(const char* path, std::string_view key) {
  std::ifstream file(path);
  double value = 0;
  for (std::string word; file >> word;) {
    if (word == key && file >> value) return value;
  }
  return kUnknown;
}

double first_number(const char* path) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? value : kUnknown;
}

// Returns the memory that this machine, or this process's container, has available.
double available_bytes() {
  const double machine = 1024 * number_after("/proc/meminfo", "MemAvailable:");
  const double limit = first_number("/sys/fs/cgroup/memory.max");
  const double used = number_after("/sys/fs/cgroup/memory.stat", "anon");
  return std::min(machine, limit == kUnknown || used == kUnknown ? kUnknown : limit - used);
}

// The memory that a rank requests, and its machine.
struct Request {
  std::array<char, 64> host{};
  double bytes = 0;
};

}  // namespace

void check_host_memory(Mesh& mesh, double pool_bytes) {
  if (mesh.device().kind != DeviceKind::kCpu) return;
  Request mine{.bytes = pool_bytes};
  ::gethostname(mine.host.data(), mine.host.size() - 1);
  const std::vector<Request> all =
      all_gather_value(mesh.world(), mine, "compare pools with memory");
  agree(mesh.world(), [&] {
    int ranks = 0;
    double asked = 0;
    for (const Request& request : all) {
      if (request.host != mine.host) continue;
      ++ranks;
      asked += request.bytes;
    }
    const double available = available_bytes();
    if (asked <= available) return;
    const std::string each =
        ranks > 1 ? fmt::format(" together ({} each)", human_bytes(pool_bytes)) : std::string();
    throw Error(fmt::format(
        "the KV pools of {} {} on {} take {}{}, {} are available: ask for fewer or smaller "
        "pages, fewer tokens or fewer ranks",
        ranks, ranks == 1 ? "rank" : "ranks", mine.host.data(), human_bytes(asked), each,
        human_bytes(available)));
  });
}

}  // namespace kvmesh::launch
