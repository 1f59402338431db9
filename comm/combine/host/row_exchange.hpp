// Rows on their way between this rank and its peers, over the group's communicator.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "comm/combine/plan_digest.hpp"
#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Floats to send or receive. Grows and never shrinks; a resize loses its contents. As a message it
/// has the plan's digest behind the floats; a buffer without floats is no message.
class RowBuffer {
 public:
  float* resize(std::int64_t floats) {
    used_ = static_cast<std::size_t>(floats);
    if (used_ + kDigestFloats > values_.size()) values_.resize(used_ + kDigestFloats);
    return values_.data();
  }
  float* data() { return values_.data(); }
  std::int64_t floats() const { return static_cast<std::int64_t>(used_); }
  std::span<float> message() {
    return std::span(values_).first(used_ == 0 ? 0 : used_ + kDigestFloats);
  }
  bool is_message() const { return used_ > 0; }
  /// REQUIRES: a message.
  PlanDigest digest() const {
    PlanDigest digest;
    std::memcpy(digest.groups.data(), values_.data() + used_, sizeof digest);
    return digest;
  }
  void set_digest(const PlanDigest& digest) {
    std::memcpy(values_.data() + used_, digest.groups.data(), sizeof digest);
  }
  std::size_t size_bytes() const { return values_.size() * sizeof(float); }

 private:
  static constexpr std::size_t kDigestFloats = sizeof(PlanDigest) / sizeof(float);

  std::vector<float> values_;
  std::size_t used_ = 0;
};

/// Has a buffer for each rank to send to, and one for each to receive from. The host's ways of a
/// group share one exchange, since they run one after the other, so no plan has large buffers of
/// its own. Does not outlive `comm`.
class RowExchange {
 public:
  explicit RowExchange(Communicator& comm);

  int rank() const { return me_; }
  int ranks() const { return static_cast<int>(outgoing_.size()); }
  RowBuffer& outgoing(int peer) { return outgoing_[static_cast<std::size_t>(peer)]; }
  /// For this rank itself: the buffer of its own rows, which the caller fills.
  RowBuffer& incoming(int peer) { return incoming_[static_cast<std::size_t>(peer)]; }
  /// This rank's merged rows, before they are gathered; their LSEs where O goes apart.
  RowBuffer& merged() { return merged_; }
  /// This rank's O in one piece, where the caller's tensor is not.
  RowBuffer& packed() { return packed_; }
  /// The merged O of all ranks, where the caller's tensor cannot take it as it comes.
  RowBuffer& gathered() { return gathered_; }

  /// Sets the digest that the next exchanges send along.
  void identify(const PlanDigest& digest) { digest_ = digest; }

  /// Sends each peer its outgoing buffer and fills the incoming ones.
  /// @throws DigestMismatch if a peer's message has another digest or size; as the communicator.
  /// Collective.
  void exchange(std::string_view operation) { exchange(operation, nullptr); }
  /// Sends `rows` to every peer and fills the incoming buffers. Collective.
  void send_to_all(RowBuffer& rows, std::string_view operation) { exchange(operation, &rows); }

  /// The rows that one peer and this rank send each other: O from where it lies to where it goes,
  /// and a buffer with the LSEs for the peer. The peer's LSEs come to incoming_lses.
  struct Apart {
    std::span<const float> o;
    RowBuffer* lses = nullptr;
    std::span<float> o_from_peer;
  };
  /// The messages of each peer for exchange_apart. Still holds those of the last exchange.
  std::vector<Apart>& apart() { return apart_; }
  RowBuffer& incoming_lses(int peer) { return incoming_lses_[static_cast<std::size_t>(peer)]; }
  /// As exchange, in two messages per peer as apart() says: LSEs, then O. Collective.
  void exchange_apart(std::string_view operation);

  std::size_t size_bytes() const;

 private:
  void exchange(std::string_view operation, RowBuffer* to_all);
  void clear_entries();
  void add_outgoing(int peer, RowBuffer& buffer);
  void exchange_entries(std::string_view operation);
  void check_digests(const std::vector<RowBuffer>& received, std::string_view operation) const;

  int name_of(int rank) const { return comm_->name_of(Rank{rank}).value; }

  Communicator* comm_;
  int me_;
  PlanDigest digest_;
  std::vector<RowBuffer> outgoing_;       // [rank]
  std::vector<RowBuffer> incoming_;       // [rank]
  std::vector<RowBuffer> incoming_lses_;  // [rank]
  RowBuffer merged_;
  RowBuffer packed_;
  RowBuffer gathered_;
  std::vector<Apart> apart_;  // [rank]
  std::vector<Outgoing> outgoing_entries_;
  std::vector<Incoming> incoming_entries_;
};

}  // namespace kvmesh
