#include "comm/combine/host/row_exchange.hpp"

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
    outgoing_entries_.push_back({Rank{peer}, std::as_bytes(buffer.values())});
    incoming_entries_.push_back({Rank{peer}, std::as_writable_bytes(incoming(peer).values())});
  }
  comm_->exchange(outgoing_entries_, incoming_entries_, operation);
}

std::size_t RowExchange::size_bytes() const {
  std::size_t bytes = merged_.size_bytes();
  for (const RowBuffer& buffer : outgoing_) bytes += buffer.size_bytes();
  for (const RowBuffer& buffer : incoming_) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace kvmesh
