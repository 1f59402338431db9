// The common part of the communicators in this folder.
#pragma once

#include <cstdint>

#include "comm/common/exchange_check.hpp"
#include "core/check.hpp"
#include "kvmesh/communicator.hpp"

namespace kvmesh {

/// Holds rank, size, deadline and the count of sent bytes. `exchange` checks its entries, copies
/// the caller's entry for itself and calls `exchange_with_others`; `split` calls `make_part`. If
/// one of them throws, the communicator is broken.
class CommunicatorBase : public Communicator {
 public:
  CommunicatorBase(Rank rank, int size, std::chrono::milliseconds deadline)
      : rank_(rank), size_(size), deadline_(checked_deadline(deadline)), check_(rank, size) {}

  Rank rank() const final { return rank_; }
  int size() const final { return size_; }
  void set_deadline(std::chrono::milliseconds deadline) final {
    deadline_ = checked_deadline(deadline);
  }
  std::chrono::milliseconds deadline() const final { return deadline_; }
  std::uint64_t sent_bytes() const final { return sent_bytes_; }

  void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                std::string_view operation) final {
    check_(outgoing, incoming, operation);
    if (is_broken_) {
      throw BrokenGroup(
          fmt::format("{}: this communicator failed before and cannot be used again", operation));
    }
    copy_to_self(rank_, outgoing, incoming);
    try {
      exchange_with_others(outgoing, incoming, operation);
    } catch (...) {
      fail(outgoing);
      throw;
    }
    sent_bytes_ += bytes_to_others(rank_, outgoing);
  }

  std::unique_ptr<Communicator> split(int color, int key) final {
    try {
      return make_part(color, key);
    } catch (const InvalidArgument&) {
      throw;
    } catch (...) {
      fail({});
      throw;
    }
  }

 protected:
  bool is_broken() const { return is_broken_; }

  /// Marks the communicator as broken and breaks off, unless it is broken already. Called in the
  /// handler of the exception.
  void fail(std::span<const Outgoing> outgoing) {
    if (is_broken_) return;
    is_broken_ = true;
    break_off(outgoing);
  }

 private:
  /// Sends and receives everything, except empty entries and those for the caller itself.
  virtual void exchange_with_others(std::span<const Outgoing> outgoing,
                                    std::span<const Incoming> incoming,
                                    std::string_view operation) = 0;
  /// See `split`. It may exchange.
  virtual std::unique_ptr<Communicator> make_part(int color, int key) = 0;
  /// Ends an exchange that failed, or a split (then `outgoing` is empty). When it returns, no
  /// operation uses the caller's buffers any more. Called in the handler of the exception.
  virtual void break_off(std::span<const Outgoing> outgoing) = 0;

  Rank rank_;
  int size_;
  std::chrono::milliseconds deadline_;
  ExchangeCheck check_;
  std::uint64_t sent_bytes_ = 0;
  bool is_broken_ = false;
};

}  // namespace kvmesh
