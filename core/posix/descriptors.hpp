// File descriptors that processes of one machine give one another.
#pragma once

#include <unistd.h>

#include <array>
#include <cstddef>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "core/pieces.hpp"

namespace kvmesh {

/// Owns a file descriptor; a negative one is none.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  int get() const { return number_; }

 private:
  int number_;
};

/// Where descriptors are given: a random name. Trivially copyable; all zero: nowhere.
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
