// The outcome of a stream: world rank 0 reads or writes it, and all ranks throw the same error.
#pragma once

#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kvmesh/communicator.hpp"
#include "kvmesh/sequence_stream.hpp"

namespace kvmesh {

/// The result of rank 0's work, shared with all ranks: success, or an error that each throws.
class Outcome {
 public:
  /// Runs `work` on rank 0, unless it has failed before.
  template <class Work>
  void run(Communicator& world, const Work& work) {
    if (world.rank().value != 0 || error_) return;
    try {
      work();
    } catch (const StreamError& error) {
      error_ = error;
    } catch (const std::exception& error) {
      error_ = StreamError(StreamError::Reason::kIo, error.what());
    }
  }
  bool failed() const { return error_.has_value(); }

  /// Throws on all ranks if rank 0 has failed. Collective.
  void agree(Communicator& world) const {
    struct Wire {
      std::uint32_t failed = 0, reason = 0, size = 0;
    } wire;
    if (error_) {
      wire = {1, static_cast<std::uint32_t>(error_->reason()),
              static_cast<std::uint32_t>(std::string_view(error_->what()).size())};
    }
    broadcast(world, Rank{0}, std::as_writable_bytes(std::span(&wire, 1)), "sequence stream");
    if (wire.failed == 0) return;
    std::string what = error_ ? error_->what() : std::string(wire.size, ' ');
    broadcast(world, Rank{0}, std::as_writable_bytes(std::span(what)), "sequence stream: error");
    throw StreamError(static_cast<StreamError::Reason>(wire.reason), what);
  }

 private:
  std::optional<StreamError> error_;
};

}  // namespace kvmesh
