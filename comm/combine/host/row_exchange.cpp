#include "comm/combine/host/row_exchange.hpp"

#include <fmt/format.h>

#include "comm/size_mismatch.hpp"

namespace kvmesh {

RowExchange::RowExchange(Communicator& comm)
    : comm_(&comm),
      me_(comm.rank().value),
      outgoing_(static_cast<std::size_t>(comm.size())),
      incoming_(static_cast<std::size_t>(comm.size())) {}

void RowExchange::exchange(std::string_view operation, RowBuffer* to_all) {
  outgoing_entries_.clear();
  incoming_entries_.clear();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    RowBuffer& buffer = to_all != nullptr ? *to_all : outgoing(peer);
    if (!buffer.message().empty()) buffer.set_digest(digest_);
    outgoing_entries_.push_back({Rank{peer}, std::as_bytes(buffer.message())});
    incoming_entries_.push_back({Rank{peer}, std::as_writable_bytes(incoming(peer).message())});
  }
  try {
    comm_->exchange(outgoing_entries_, incoming_entries_, operation);
  } catch (const SizeMismatch& error) {
    throw DigestMismatch(
        fmt::format("{}: the plans of ranks {} and {} differ in lengths or strategy", error.what(),
                    me_, error.sender().value));
  }
  check_digests(operation);
}

void RowExchange::check_digests(std::string_view operation) {
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_ || incoming(peer).message().empty()) continue;
    const PlanDigest theirs = incoming(peer).digest();
    if (theirs == digest_) continue;
    throw DigestMismatch(fmt::format("{}: the plans of ranks {} and {} differ in: {}", operation,
                                     me_, peer, differing_groups(digest_, theirs)));
  }
}

std::size_t RowExchange::size_bytes() const {
  std::size_t bytes = merged_.size_bytes();
  for (const RowBuffer& buffer : outgoing_) bytes += buffer.size_bytes();
  for (const RowBuffer& buffer : incoming_) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace kvmesh
