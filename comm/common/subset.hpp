// Some ranks of a communicator, as a communicator.
#pragma once

#include <vector>

#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// The ranks `members` of `whole`, which it does not outlive: rank i is members[i]. Its messages
/// are messages of `whole`, so deadlines are those of `whole`, a failure breaks `whole`, and errors
/// name ranks of `whole`. Making it sends nothing.
class Subset final : public Communicator {
 public:
  /// REQUIRES: this rank is one of the members, and all members pass the same ones.
  Subset(Communicator& whole, std::vector<Rank> members);

  Rank rank() const override { return me_; }
  int size() const override { return static_cast<int>(members_.size()); }
  std::string_view kind() const override { return whole_->kind(); }
  Rank name_of(Rank rank) const override {
    return whole_->name_of(members_[static_cast<std::size_t>(rank.value)]);
  }
  void set_deadline(std::chrono::milliseconds deadline) override { whole_->set_deadline(deadline); }
  std::chrono::milliseconds deadline() const override { return whole_->deadline(); }
  /// Bytes sent through this object.
  std::uint64_t sent_bytes() const override { return sent_bytes_; }
  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                std::string_view operation) override;
  /// @throws Unsupported.
  std::unique_ptr<Communicator> split(int color, int key) override;

 private:
  Communicator* whole_;
  std::vector<Rank> members_;
  Rank me_{};
  std::uint64_t sent_bytes_ = 0;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
};

}  // namespace kvmesh
