#include "comm/common/exchange_check.hpp"

#include <algorithm>
#include <cstring>

#include "core/check.hpp"

namespace kvmesh {
namespace {

std::span<const std::byte> to_self(Rank self, std::span<const Outgoing> outgoing) {
  for (const Outgoing& out : outgoing) {
    if (out.to == self) return out.bytes;
  }
  return {};
}

std::span<std::byte> from_self(Rank self, std::span<const Incoming> incoming) {
  for (const Incoming& in : incoming) {
    if (in.from == self) return in.bytes;
  }
  return {};
}

}  // namespace

ExchangeCheck::ExchangeCheck(Rank rank, int size)
    : rank_(rank), seen_(static_cast<std::size_t>(size)) {}

void ExchangeCheck::visit(Rank peer, std::string_view side, std::string_view operation) {
  const auto size = static_cast<std::int32_t>(seen_.size());
  require(peer.value >= 0 && peer.value < size, "{}: {} names rank {}, the group has {} ranks",
          operation, side, peer.value, size);
  char& seen = seen_[static_cast<std::size_t>(peer.value)];
  require(seen == 0, "{}: {} names rank {} twice", operation, side, peer.value);
  seen = 1;
}

void ExchangeCheck::operator()(std::span<const Outgoing> outgoing,
                               std::span<const Incoming> incoming, std::string_view operation) {
  std::fill(seen_.begin(), seen_.end(), 0);
  for (const Outgoing& out : outgoing) visit(out.to, "outgoing", operation);
  std::fill(seen_.begin(), seen_.end(), 0);
  for (const Incoming& in : incoming) visit(in.from, "incoming", operation);

  const std::size_t sent = to_self(rank_, outgoing).size();
  const std::size_t expected = from_self(rank_, incoming).size();
  require(sent == expected, "{}: rank {} sends itself {} bytes and expects {}", operation,
          rank_.value, sent, expected);
}

void copy_to_self(Rank self, std::span<const Outgoing> outgoing,
                  std::span<const Incoming> incoming) {
  const std::span<const std::byte> source = to_self(self, outgoing);
  const std::span<std::byte> destination = from_self(self, incoming);
  if (source.empty() || source.data() == destination.data()) return;
  std::memmove(destination.data(), source.data(), source.size());
}

std::size_t bytes_to_others(Rank self, std::span<const Outgoing> outgoing) {
  std::size_t bytes = 0;
  for (const Outgoing& out : outgoing) {
    if (out.to != self) bytes += out.bytes.size();
  }
  return bytes;
}

}  // namespace kvmesh
