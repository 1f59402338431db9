// The errors that kvmesh throws. Each carries what was asked and what there is.
//
// A call that refuses has changed nothing: InvalidArgument, Unsupported, UnknownSequence,
// OutOfPages, and OutOfMemory. What a caller must expect in normal service (a full pool) also has a
// `try_` form that returns a value instead.
//
// What fails in the middle of a step (Timeout, PeerLost, NcclError, BrokenGroup, a device's Error)
// has done a part of it. KvCache::plan says what is left, and how to go back.
#pragma once

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvmesh/types.hpp"

namespace kvmesh {

/// Base of all of them: catch this to turn any kvmesh failure into one line.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An argument that no state could make right: a wrong shape, a negative length, a bad option.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// What was asked for is not in this build or not on this machine (a GPU, say).
class Unsupported : public Error {
 public:
  using Error::Error;
};

/// A sequence id that was never created, has been erased, or is another allocator's.
class UnknownSequence : public Error {
 public:
  explicit UnknownSequence(SequenceId sequence);
  /// `space` is that of the allocator which was given the id.
  UnknownSequence(SequenceId sequence, std::uint16_t space);
  SequenceId sequence() const { return sequence_; }

 private:
  SequenceId sequence_;
};

/// The pools cannot give the pages that an operation needs.
class OutOfPages : public Error {
 public:
  OutOfPages(std::int64_t asked_pages, std::vector<std::int64_t> free_pages_per_rank);
  std::int64_t asked_pages() const { return asked_pages_; }
  std::int64_t free_pages() const { return free_pages_; }
  const std::vector<std::int64_t>& free_pages_per_rank() const { return free_pages_per_rank_; }

 private:
  std::int64_t asked_pages_;
  std::int64_t free_pages_;
  std::vector<std::int64_t> free_pages_per_rank_;
};

/// The system starts no more threads (a limit of the user or of the container).
class OutOfThreads : public Error {
 public:
  OutOfThreads(int asked, int started, const std::string& reason);
  int asked() const { return asked_; }
  int started() const { return started_; }

 private:
  int asked_;
  int started_;
};

/// A rank's device has no room for the pools that a cache asks for. All ranks throw it alike.
class OutOfMemory : public Error {
 public:
  /// `reason` completes "rank 3 has no memory for pools of 1024 bytes: ...".
  OutOfMemory(Rank rank, std::int64_t asked_bytes, const std::string& reason);
  Rank rank() const { return rank_; }
  std::int64_t asked_bytes() const { return asked_bytes_; }

 private:
  Rank rank_;
  std::int64_t asked_bytes_;
};

/// A peer did not answer within the deadline; or, where `late` is empty, this rank's own device was
/// not done by then.
class Timeout : public Error {
 public:
  Timeout(Rank waiter, std::vector<Rank> late, std::string operation,
          std::chrono::milliseconds deadline);
  Rank waiter() const { return waiter_; }
  const std::vector<Rank>& late() const { return late_; }
  const std::string& operation() const { return operation_; }

 private:
  Rank waiter_;
  std::vector<Rank> late_;
  std::string operation_;
};

/// A peer has gone: its connection ended (TCP). MPI and NCCL tell of it by errors of their own.
class PeerLost : public Error {
 public:
  /// `reason` completes "lost rank 3 in OPERATION: ...".
  PeerLost(Rank waiter, Rank peer, std::string operation, const std::string& reason);
  Rank waiter() const { return waiter_; }
  Rank peer() const { return peer_; }
  const std::string& operation() const { return operation_; }

 private:
  Rank waiter_;
  Rank peer_;
  std::string operation_;
};

/// A communicator, or a group of GPUs, that failed or was closed before was used again.
class BrokenGroup : public Error {
 public:
  using Error::Error;
};

/// The ranks' copies of the allocator no longer agree: they were not given the same operations.
class DigestMismatch : public Error {
 public:
  using Error::Error;
};

}  // namespace kvmesh
