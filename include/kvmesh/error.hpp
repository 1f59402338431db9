// The errors that kvmesh throws. Each carries the request that failed and the resources that exist.
//
// InvalidArgument, Unsupported, UnknownSequence, OutOfPages and OutOfMemory: the call has changed
// nothing. A call that can fail in normal service (because the pool is full) also has a `try_` form
// that returns a value instead.
//
// Timeout, PeerLost, NcclError, BrokenGroup and a device's Error: in the middle of a step they
// leave the step partly done. KvCache::plan documents the state afterwards and how to go back.
#pragma once

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// One code per type of error, for languages that have no exceptions. The numbers are part of the C
/// ABI (KVMESH_OUT_OF_PAGES, ... in c/kvmesh.h): a new type gets the next number, and none changes.
enum class ErrorCode : std::int32_t {
  kError = 1,  ///< Error itself, mostly of a device or of the system
  kInvalidArgument = 2,
  kUnsupported = 3,
  kUnknownSequence = 4,
  kOutOfPages = 5,
  kOutOfThreads = 6,
  kOutOfMemory = 7,
  kTimeout = 8,
  kPeerLost = 9,
  kBrokenGroup = 10,
  kDigestMismatch = 11,
  kRendezvous = 12,  ///< RendezvousError, in tcp.hpp
  kNccl = 13,        ///< NcclError, in nccl.hpp
  kStream = 14,      ///< StreamError, in sequence_stream.hpp
};

/// Base of all errors: a catch of this type handles every kvmesh failure.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  virtual ErrorCode code() const noexcept { return ErrorCode::kError; }
};

/// An argument that is invalid in every state: a wrong shape, a negative length, a bad option.
class InvalidArgument : public Error {
 public:
  using Error::Error;
  ErrorCode code() const noexcept override { return ErrorCode::kInvalidArgument; }
};

/// A feature that this build or this machine does not have (a GPU, for example).
class Unsupported : public Error {
 public:
  using Error::Error;
  ErrorCode code() const noexcept override { return ErrorCode::kUnsupported; }
};

/// A sequence id that was never created, has been erased, or belongs to another allocator.
class UnknownSequence : public Error {
 public:
  explicit UnknownSequence(SequenceId sequence);
  /// `space` is the id space of the allocator that was called with the id.
  UnknownSequence(SequenceId sequence, std::uint16_t space);
  SequenceId sequence() const { return sequence_; }
  ErrorCode code() const noexcept override { return ErrorCode::kUnknownSequence; }

 private:
  SequenceId sequence_;
};

/// The pools have too few free pages for an operation.
class OutOfPages : public Error {
 public:
  OutOfPages(std::int64_t asked_pages, std::vector<std::int64_t> free_pages_per_rank);
  std::int64_t asked_pages() const { return asked_pages_; }
  std::int64_t free_pages() const { return free_pages_; }
  const std::vector<std::int64_t>& free_pages_per_rank() const { return free_pages_per_rank_; }
  ErrorCode code() const noexcept override { return ErrorCode::kOutOfPages; }

 private:
  std::int64_t asked_pages_;
  std::int64_t free_pages_;
  std::vector<std::int64_t> free_pages_per_rank_;
};

/// The system does not start more threads (a limit of the user or of the container).
class OutOfThreads : public Error {
 public:
  OutOfThreads(int asked, int started, const std::string& reason);
  int asked() const { return asked_; }
  int started() const { return started_; }
  ErrorCode code() const noexcept override { return ErrorCode::kOutOfThreads; }

 private:
  int asked_;
  int started_;
};

/// A rank's device has no room for the pools of a cache. All ranks throw the same error.
class OutOfMemory : public Error {
 public:
  /// `reason` completes "rank 3 has no memory for pools of 1024 bytes: ...".
  OutOfMemory(Rank rank, std::int64_t asked_bytes, const std::string& reason);
  Rank rank() const { return rank_; }
  std::int64_t asked_bytes() const { return asked_bytes_; }
  ErrorCode code() const noexcept override { return ErrorCode::kOutOfMemory; }

 private:
  Rank rank_;
  std::int64_t asked_bytes_;
};

/// A peer did not answer within the deadline. If `late` is empty, this rank's own device did not
/// finish in time. Ranks are named as the communicator that waited names them (`name_of`): those of
/// a mesh by their world ranks.
class Timeout : public Error {
 public:
  Timeout(Rank waiter, std::vector<Rank> late, std::string operation,
          std::chrono::milliseconds deadline);
  Rank waiter() const { return waiter_; }
  const std::vector<Rank>& late() const { return late_; }
  const std::string& operation() const { return operation_; }
  ErrorCode code() const noexcept override { return ErrorCode::kTimeout; }

 private:
  Rank waiter_;
  std::vector<Rank> late_;
  std::string operation_;
};

/// A peer's connection ended; ranks are numbered as in Timeout. Only TCP throws it: MPI and NCCL
/// report a lost peer by errors of their own.
class PeerLost : public Error {
 public:
  /// `reason` completes "lost rank 3 in OPERATION: ...".
  PeerLost(Rank waiter, Rank peer, std::string operation, const std::string& reason);
  Rank waiter() const { return waiter_; }
  Rank peer() const { return peer_; }
  const std::string& operation() const { return operation_; }
  ErrorCode code() const noexcept override { return ErrorCode::kPeerLost; }

 private:
  Rank waiter_;
  Rank peer_;
  std::string operation_;
};

/// A communicator or a group of GPUs was used again after it had failed or was closed.
class BrokenGroup : public Error {
 public:
  using Error::Error;
  ErrorCode code() const noexcept override { return ErrorCode::kBrokenGroup; }
};

/// The ranks have diverged: they did not apply the same operations to their copies of the
/// allocator, or did not plan or combine the same steps.
class DigestMismatch : public Error {
 public:
  using Error::Error;
  ErrorCode code() const noexcept override { return ErrorCode::kDigestMismatch; }
};

/// Returns `text`, which may come from another process or a file, for a terminal or a log: bytes
/// that are no printable character become \xHH. UTF-8 stays.
std::string printable(std::string_view text);

}  // namespace kvmesh
