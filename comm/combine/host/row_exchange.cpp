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
  clear_entries();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    add_outgoing(peer, to_all != nullptr ? *to_all : outgoing(peer));
    incoming_entries_.push_back({Rank{peer}, std::as_writable_bytes(incoming(peer).message())});
  }
  exchange_entries(operation);
  check_digests(operation);
}

void RowExchange::exchange_apart(std::span<const Apart> to, std::int64_t dim,
                                 std::string_view operation) {
  const auto o_of = [&](int peer) {
    const std::int64_t rows = incoming(peer).floats() / (dim + 1);
    return static_cast<std::size_t>(rows * dim);
  };
  clear_entries();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    add_outgoing(peer, *to[static_cast<std::size_t>(peer)].lses);
    incoming_entries_.push_back(
        {Rank{peer}, std::as_writable_bytes(incoming(peer).message().subspan(o_of(peer)))});
  }
  exchange_entries(operation);
  check_digests(operation);

  clear_entries();
  for (int peer = 0; peer < ranks(); ++peer) {
    if (peer == me_) continue;
    outgoing_entries_.push_back({Rank{peer}, std::as_bytes(to[static_cast<std::size_t>(peer)].o)});
    incoming_entries_.push_back(
        {Rank{peer}, std::as_writable_bytes(incoming(peer).message().first(o_of(peer)))});
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
                    me_, error.sender().value));
  }
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
  std::size_t bytes = merged_.size_bytes() + packed_.size_bytes();
  for (const RowBuffer& buffer : outgoing_) bytes += buffer.size_bytes();
  for (const RowBuffer& buffer : incoming_) bytes += buffer.size_bytes();
  return bytes;
}

}  // namespace kvmesh
