// Rows on their way between this rank and its peers, over the group's communicator.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Floats to send or receive. Grows and never shrinks; what it held is lost with each resize.
class RowBuffer {
 public:
  float* resize(std::int64_t floats) {
    used_ = static_cast<std::size_t>(floats);
    if (used_ > values_.size()) values_.resize(used_);
    return values_.data();
  }
  float* data() { return values_.data(); }
  std::span<float> values() { return std::span(values_).first(used_); }
  std::size_t size_bytes() const { return values_.size() * sizeof(float); }

 private:
  std::vector<float> values_;
  std::size_t used_ = 0;
};

/// A buffer to each rank and one from each. The host's ways of a group share one exchange, as they
/// run one after the other: no plan has large buffers of its own. Does not outlive `comm`.
class RowExchange {
 public:
  explicit RowExchange(Communicator& comm);

  int rank() const { return me_; }
  int ranks() const { return static_cast<int>(outgoing_.size()); }
  RowBuffer& outgoing(int peer) { return outgoing_[static_cast<std::size_t>(peer)]; }
  /// From this rank itself: its own rows, which the caller puts there.
  RowBuffer& incoming(int peer) { return incoming_[static_cast<std::size_t>(peer)]; }
  /// This rank's merged rows, before they are gathered.
  RowBuffer& merged() { return merged_; }

  /// Sends each peer its outgoing buffer and fills the incoming ones. Collective.
  void exchange(std::string_view operation) { exchange(operation, nullptr); }
  /// Sends `rows` to every peer and fills the incoming buffers. Collective.
  void send_to_all(RowBuffer& rows, std::string_view operation) { exchange(operation, &rows); }

  std::size_t size_bytes() const;

 private:
  void exchange(std::string_view operation, RowBuffer* to_all);

  Communicator* comm_;
  int me_;
  std::vector<RowBuffer> outgoing_;  // [rank]
  std::vector<RowBuffer> incoming_;  // [rank]
  RowBuffer merged_;
  std::vector<Outgoing> outgoing_entries_;
  std::vector<Incoming> incoming_entries_;
};

}  // namespace kvmesh
