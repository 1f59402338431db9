#include "comm/common/subset.hpp"

#include <algorithm>

#include "core/check.hpp"

namespace kvmesh {

Subset::Subset(Communicator& whole, std::vector<Rank> members)
    : whole_(&whole), members_(std::move(members)) {
  const auto me = std::ranges::find(members_, whole.rank());
  require(me != members_.end(), "subset: rank {} is not a member", whole.rank().value);
  me_ = Rank{static_cast<std::int32_t>(me - members_.begin())};
}

void Subset::exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                      std::string_view operation) {
  const auto check = [&](Rank peer) {
    require(peer.value >= 0 && peer.value < size(), "{}: rank {} of {}", operation, peer.value,
            size());
  };
  outgoing_.clear();
  incoming_.clear();
  std::uint64_t bytes = 0;
  for (const Outgoing& out : outgoing) {
    check(out.to);
    outgoing_.push_back({members_[static_cast<std::size_t>(out.to.value)], out.bytes});
    if (out.to != me_) bytes += out.bytes.size();
  }
  for (const Incoming& in : incoming) {
    check(in.from);
    incoming_.push_back({members_[static_cast<std::size_t>(in.from.value)], in.bytes});
  }
  whole_->exchange(outgoing_, incoming_, operation);
  sent_bytes_ += bytes;
}

std::unique_ptr<Communicator> Subset::split(int, int) {
  throw Unsupported("split: of some ranks of a communicator");
}

}  // namespace kvmesh
