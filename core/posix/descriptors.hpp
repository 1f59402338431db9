// File descriptors that processes of one machine give one another.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

#include "core/pieces.hpp"
#include "core/posix/descriptor.hpp"

namespace kvmesh {

/// The name under which a server gives descriptors: random. Trivially copyable; all zero: no
/// server.
using DescriptorPlace = std::array<char, 40>;

/// Gives the descriptors of pieces of memory, while it exists, to the processes of this user that
/// know its place: over a socket without a name in any folder (unix(7), abstract names).
class DescriptorServer {
 public:
  /// `open(piece)` returns a descriptor, or a negative number if there is none. It is called on a
  /// thread, and its descriptors are closed there.
  DescriptorServer(std::vector<ByteRange> pieces, std::function<int(const ByteRange&)> open);
  ~DescriptorServer();
  DescriptorServer(const DescriptorServer&) = delete;
  DescriptorServer& operator=(const DescriptorServer&) = delete;

  /// Nowhere, if the system has no such sockets.
  const DescriptorPlace& place() const { return place_; }

 private:
  void serve();
  void give(int connection) const;

  std::vector<ByteRange> pieces_;
  std::function<int(const ByteRange&)> open_;
  DescriptorPlace place_{};
  Descriptor listener_, wake_;
  std::thread thread_;  // last: it uses the others
};

/// Takes all that a server gives: calls `take(piece, descriptor)` for each, after which the
/// descriptor is closed. Returns false if one could not be had within seconds, or not be taken.
bool take_descriptors(const DescriptorPlace& place,
                      const std::function<bool(const ByteRange&, int)>& take);

}  // namespace kvmesh
