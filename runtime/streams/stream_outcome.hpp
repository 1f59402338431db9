// The outcome of a stream: world rank 0 reads or writes it, each rank copies rows, and all ranks
// throw the same error.
#pragma once

#include <algorithm>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "kvmesh/sequence_stream.hpp"

namespace kvmesh {

/// The result of a rank's work, shared with all ranks: success, or an error that each throws.
class Outcome {
 public:
  /// Runs `work`, unless this rank has failed before.
  template <class Work>
  void run(const Work& work) {
    if (error_) return;
    try {
      work();
    } catch (const StreamError& error) {
      error_ = error;
    } catch (const std::exception& error) {
      error_ = StreamError(StreamError::Reason::kIo, error.what());
    }
  }
  /// The same on rank 0; nothing on the others.
  template <class Work>
  void run_on_first(Communicator& world, const Work& work) {
    if (world.rank().value == 0) run(work);
  }
  bool failed() const { return error_.has_value(); }

  /// Throws the error of the first rank that has failed, on all ranks. Collective.
  void agree(Communicator& world) const {
    struct Wire {
      std::uint32_t failed = 0, reason = 0, size = 0;
    } wire;
    if (error_) {
      wire = {1, static_cast<std::uint32_t>(error_->reason()),
              static_cast<std::uint32_t>(std::string_view(error_->what()).size())};
    }
    const std::vector<Wire> all = all_gather_value(world, wire, "sequence stream");
    const auto first = std::ranges::find(all, 1u, &Wire::failed);
    if (first == all.end()) return;
    const Rank rank{static_cast<std::int32_t>(first - all.begin())};
    std::string what = rank == world.rank() ? error_->what() : std::string(first->size, ' ');
    broadcast(world, rank, std::as_writable_bytes(std::span(what)), "sequence stream: error");
    throw StreamError(static_cast<StreamError::Reason>(first->reason), what);
  }

 private:
  std::optional<StreamError> error_;
};

}  // namespace kvmesh
