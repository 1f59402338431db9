#include "comm/combine/host/row_exchange.hpp"

#include <fmt/format.h>

#include "comm/common/size_mismatch.hpp"

namespace kvmesh {

RowExchange::RowExchange(Communicator& comm)
    : comm_(&comm),
      me_(comm.rank().value),
      outgoing_(static_cast<std::size_t>(comm.size())),
      incoming_(outgoing_.size()),
      incoming_lses_(outgoing_.size()),
      apart_(outgoing_.size()) {}

void RowExchange::exchange(std::string_view operation, RowBuffer* to_all) {
  clear_entries();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    add_outgoing(peer, to_all != nullptr ? *to_all : outgoing(peer));
    incoming_entries_.push_back({Rank{peer}, std::as_writable_bytes(incoming(peer).message())});
  }
  exchange_entries(operation);
  check_digests(incoming_, operation);
}

void RowExchange::exchange_apart(std::string_view operation) {
  clear_entries();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    add_outgoing(peer, *apart_[static_cast<std::size_t>(peer)].lses);
    incoming_entries_.push_back(
        {Rank{peer}, std::as_writable_bytes(incoming_lses(peer).message())});
  }
  exchange_entries(operation);
  check_digests(incoming_lses_, operation);

  clear_entries();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    const Apart& rows = apart_[static_cast<std::size_t>(peer)];
    outgoing_entries_.push_back({Rank{peer}, std::as_bytes(rows.o)});
    incoming_entries_.push_back({Rank{peer}, std::as_writable_bytes(rows.o_from_peer)});
  }
  exchange_entries(operation);
}

void RowExchange::clear_entries() {
  outgoing_entries_.clear();
  incoming_entries_.clear();
}

void RowExchange::add_outgoing(int peer, RowBuffer& buffer) {
  if (!buffer.message().empty()) buffer.set_digest(digest_);
  outgoing_entries_.push_back({Rank{peer}, std::as_bytes(buffer.message())});
}

void RowExchange::exchange_entries(std::string_view operation) {
  try {
    comm_->exchange(outgoing_entries_, incoming_entries_, operation);
  } catch (const SizeMismatch& error) {
    throw DigestMismatch(
        fmt::format("{}: the plans of ranks {} and {} differ in lengths or strategy", error.what(),
                    name_of(me_), error.message().sender.value));
  }
}

void RowExchange::check_digests(const std::vector<RowBuffer>& received,
                                std::string_view operation) const {
  for (int peer = 0; peer < ranks(); ++peer) {
    const RowBuffer& message = received[static_cast<std::size_t>(peer)];
    if (peer == me_ || !message.is_message()) continue;
    const PlanDigest theirs = message.digest();
    if (theirs == digest_) continue;
    throw DigestMismatch(fmt::format("{}: the plans of ranks {} and {} differ in: {}", operation,
                                     name_of(me_), name_of(peer),
                                     differing_groups(digest_, theirs)));
  }
}

std::size_t RowExchange::size_bytes() const {
  std::size_t bytes = merged_.size_bytes() + packed_.size_bytes() + gathered_.size_bytes();
  for (const RowBuffer& buffer : outgoing_) bytes += buffer.size_bytes();
  for (const RowBuffer& buffer : incoming_) bytes += buffer.size_bytes();
  for (const RowBuffer& buffer : incoming_lses_) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace kvmesh
