// Which process of which machine this is: who can share memory with whom.
#pragma once

#include <array>
#include <cstdint>

namespace kvmesh {

/// Trivially copyable, to be sent to other ranks.
struct ProcessIdentity {
  /// The machine and its start, as text. Containers of one machine may give themselves other names:
  /// they are then taken for machines of their own.
  std::array<char, 128> host{};
  /// Drawn at random: process numbers repeat from one container to the next.
  std::uint64_t process = 0;
  /// What the process is called under /proc, for those that see the same /proc.
  std::int64_t pid = 0;

  bool same_host(const ProcessIdentity& other) const { return host == other.host; }
  bool same_process(const ProcessIdentity& other) const {
    return same_host(other) && process == other.process && pid == other.pid;
  }
};

ProcessIdentity this_process();

}  // namespace kvmesh
