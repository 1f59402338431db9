// How ranks exchange bytes. Implementations: loopback (ranks are threads), MPI, TCP (tcp.hpp), or a
// class of the engine's own.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvmesh/api.h"
#include "kvmesh/error.hpp"
#include "kvmesh/types.hpp"

namespace KVMESH_API kvmesh {

/// Bytes for (or from) one peer. An empty span is not sent or received.
struct Outgoing {
  Rank to;
  std::span<const std::byte> bytes;
};
struct Incoming {
  Rank from;
  std::span<std::byte> bytes;
};

/// A group of ranks. It has one operation, `exchange`; the collectives below are made of it.
///
/// Order: all ranks call the same operations in the same order; there are no tags. When a call
/// returns, the caller's outgoing buffers may be reused and its incoming buffers are filled. Other
/// ranks may still be in the call.
///
/// Waits: every wait has a deadline (`set_deadline`). Past the deadline the call throws `Timeout`,
/// which names the waiting rank, the late ranks and the operation. A waiting rank yields its core.
///
/// Errors: after any exception except InvalidArgument the communicator cannot be used again: later
/// calls throw BrokenGroup.
///
/// Threads: one thread of a rank at a time.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual Rank rank() const = 0;
  virtual int size() const = 0;
  /// "loopback", "mpi" or "tcp".
  virtual std::string_view kind() const = 0;
  /// Returns the number by which errors name `rank`: itself, or for the groups of a mesh its world
  /// rank.
  virtual Rank name_of(Rank rank) const { return rank; }

  /// Sends all outgoing and receives all incoming bytes. An entry for the caller itself is a copy.
  /// `operation` is named in errors.
  /// REQUIRES: for all ranks a and b, the size that a sends to b is the size that b expects from a;
  /// at most one outgoing and one incoming entry per peer, in any order.
  /// @throws InvalidArgument if an entry is invalid: then nothing was sent, and the communicator
  /// can still be used; Error if two sizes differ and neither is 0; Timeout; PeerLost if a peer has
  /// gone. Collective.
  virtual void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                        std::string_view operation) = 0;

  /// Makes a communicator over the ranks that passed the same `color` (>= 0), ordered by `key`,
  /// then by rank.
  /// @throws InvalidArgument if the color is negative; the errors of `exchange`, which name ranks
  /// of this communicator. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  virtual void set_deadline(std::chrono::milliseconds deadline) = 0;
  virtual std::chrono::milliseconds deadline() const = 0;

  /// Bytes sent to other ranks so far.
  virtual std::uint64_t sent_bytes() const = 0;
};

/// Waits until every rank has called it. Collective.
void barrier(Communicator& comm, std::string_view operation = "barrier");

/// Gathers every rank's `mine`, in rank order, into `all` ([size * mine.size()] bytes).
/// REQUIRES: every rank's `mine` has the same size.
/// Collective.
void all_gather(Communicator& comm, std::span<const std::byte> mine, std::span<std::byte> all,
                std::string_view operation = "all_gather");

/// Returns every rank's `mine`, one rank after the other.
/// REQUIRES: every rank's `mine` has the same size.
/// Collective.
template <class T>
std::vector<T> all_gather_values(Communicator& comm, std::span<const T> mine,
                                 std::string_view operation = "all_gather") {
  static_assert(std::is_trivially_copyable_v<T>, "it travels as bytes");
  std::vector<T> all(mine.size() * static_cast<std::size_t>(comm.size()));
  all_gather(comm, std::as_bytes(mine), std::as_writable_bytes(std::span(all)), operation);
  return all;
}

/// Returns every rank's `mine`, in rank order. Collective.
template <class T>
std::vector<T> all_gather_value(Communicator& comm, const T& mine,
                                std::string_view operation = "all_gather") {
  return all_gather_values(comm, std::span(&mine, 1), operation);
}

/// As all_gather, but rank r contributes `counts[r]` bytes; `all` has the sum of `counts`.
/// Collective.
void all_gather_v(Communicator& comm, std::span<const std::byte> mine,
                  std::span<const std::size_t> counts, std::span<std::byte> all,
                  std::string_view operation = "all_gather_v");

/// Copies rank `root`'s bytes to every rank. Collective.
void broadcast(Communicator& comm, Rank root, std::span<std::byte> bytes,
               std::string_view operation = "broadcast");

/// Copies rank `root`'s value to every rank. Collective.
template <class T>
void broadcast_value(Communicator& comm, Rank root, T& value,
                     std::string_view operation = "broadcast") {
  static_assert(std::is_trivially_copyable_v<T>, "it travels as bytes");
  broadcast(comm, root, std::as_writable_bytes(std::span(&value, 1)), operation);
}

/// Sums (or takes the maximum of) `values` over the ranks, in rank order: every rank gets the same
/// bits. Collective.
void all_reduce_sum(Communicator& comm, std::span<double> values,
                    std::string_view operation = "all_reduce_sum");
void all_reduce_max(Communicator& comm, std::span<double> values,
                    std::string_view operation = "all_reduce_max");

/// Makes a group of one rank, which sends nothing.
std::unique_ptr<Communicator> make_single_communicator();

/// Runs `body` on `ranks` threads of this process, each with its own communicator over shared
/// memory, and waits for all threads. If one throws, or cannot be started, the waits of the other
/// threads end too, and the error that was thrown first is rethrown.
/// @throws InvalidArgument; OutOfThreads if the system starts fewer threads.
void run_loopback(int ranks, const std::function<void(Communicator&)>& body,
                  std::chrono::milliseconds deadline = std::chrono::seconds(60));

/// Starts MPI on construction and finalizes it on destruction. Make one per process, first thing in
/// main. It does nothing in a program that has already started MPI, and where the ranks meet by TCP
/// (see launcher.hpp). While an exception unwinds main, the destructor does not finalize MPI,
/// because that waits for the peers: the process exits without finalizing, and the launcher stops
/// the others.
///
/// MPI_Init and MPI_Finalize wait for all ranks, and nothing can interrupt them. If one of them
/// takes longer than `deadline`, the session prints an error that names the ranks that have not
/// come, and ends the process with status 2; the launcher then stops the others. (MPI does not
/// report the missing ranks. The session knows those of its own machine.)
///
/// Starts MPI with MPI_THREAD_SERIALIZED.
/// @throws InvalidArgument if the launcher's variables are invalid; RendezvousError if PMIx has
/// started this process as a rank of a job, and MPI runs alone; Unsupported if MPI provides a lower
/// thread level.
///
/// Collective.
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv,
             std::chrono::milliseconds deadline = std::chrono::seconds(60));
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// Returns true if an MPI launcher started this process (mpirun, or srun with MPI support) and
  /// the ranks do not meet by TCP: launch_from_environment().by_mpi().
  static bool launched_by_mpirun();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// In a build without MPI an MpiSession does nothing and the two functions below throw Unsupported.

/// Makes a communicator over all processes of the job (a duplicate of MPI_COMM_WORLD). `deadline`
/// bounds the wait for the other ranks in this call, and is the communicator's first deadline.
/// Threads: any, one at a time; if the engine itself started MPI with less than
/// MPI_THREAD_SERIALIZED, only the thread that started it (others get Unsupported).
/// @throws Unsupported if MPI does not run; Timeout, which names all other ranks as late, since MPI
/// does not report which ranks have called.
/// Collective.
std::unique_ptr<Communicator> make_mpi_communicator(
    std::chrono::milliseconds deadline = std::chrono::seconds(60));

/// Makes a communicator over the engine's own MPI communicator: `mpi_comm` points to an `MPI_Comm`,
/// which is duplicated.
/// @throws InvalidArgument if it is null, MPI_COMM_NULL, or an intercommunicator.
/// Collective.
std::unique_ptr<Communicator> make_mpi_communicator(
    const void* mpi_comm, std::chrono::milliseconds deadline = std::chrono::seconds(60));

/// The name and version of the MPI library that this build uses; empty if it has none.
std::string mpi_library();

}  // namespace kvmesh
