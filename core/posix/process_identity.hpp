// The identity of a process and its machine, which decides which ranks can share memory.
#pragma once

#include <array>
#include <cstdint>

namespace kvmesh {

/// Trivially copyable, to be sent to other ranks.
struct ProcessIdentity {
  /// The machine and its boot, as text. Containers on one machine may have different host names;
  /// they then count as different machines.
  std::array<char, 128> host{};
  /// A random number, because process numbers repeat in other containers.
  std::uint64_t process = 0;
  /// The process number under /proc, for processes that see the same /proc.
  std::int64_t pid = 0;

  bool same_host(const ProcessIdentity& other) const { return host == other.host; }
  bool same_process(const ProcessIdentity& other) const {
    return same_host(other) && process == other.process && pid == other.pid;
  }
};

ProcessIdentity this_process();

}  // namespace kvmesh
