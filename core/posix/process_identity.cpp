#include "core/posix/process_identity.hpp"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <string>

namespace kvmesh {
namespace {

// "0f8f… node17": the kernel draws the first part at each boot. Machines that were restored from
// one image have the same first part, so the host name is added.
std::string host_text() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::array<char, 65> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) name[0] = '?';
  return boot + ' ' + name.data();
}

std::uint64_t drawn_once() {
  static const std::uint64_t drawn = [] {
    std::random_device random;
    return std::uint64_t{random()} << 32 | random();
  }();
  return drawn;
}

}  // namespace

ProcessIdentity this_process() {
  ProcessIdentity identity;
  const std::string host = host_text();
  std::copy_n(host.begin(), std::min(host.size(), identity.host.size()), identity.host.begin());
  identity.process = drawn_once();
  identity.pid = getpid();
  return identity;
}

}  // namespace kvmesh
