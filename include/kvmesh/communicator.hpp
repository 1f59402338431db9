// How ranks exchange bytes. Implementations: loopback (ranks are threads), MPI, TCP (tcp.hpp);
// bring your own.
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

#include "kvmesh/error.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// Bytes for (or from) one peer. An empty span takes no part in the exchange.
struct Outgoing {
  Rank to;
  std::span<const std::byte> bytes;
};
struct Incoming {
  Rank from;
  std::span<std::byte> bytes;
};

/// A group of ranks. One operation, `exchange`, and the collectives that it makes.
///
/// Order: all ranks call the same operations in the same order; there are no tags. A call returns
/// when the caller's outgoing buffers may be reused and its incoming ones are filled; it does not
/// mean that any other rank has returned.
/// Waits: every wait has a deadline (`set_deadline`); past it the call throws `Timeout`, which
/// names who waited for whom, in which operation. After a throw, but for an InvalidArgument, the
/// communicator cannot be used again: that is a BrokenGroup. Threads: one thread of a rank at a
/// time. A waiting rank yields its core.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual Rank rank() const = 0;
  virtual int size() const = 0;
  /// "loopback", "mpi" or "tcp".
  virtual std::string_view kind() const = 0;

  /// Sends and receives all of it, pairwise: what rank a sends to b must have the size that b
  /// expects from a. At most one outgoing and one incoming entry per peer, in any order; an entry
  /// for the caller itself is a copy. `operation` is named in errors.
  /// @throws InvalidArgument for entries that are none of these: then nothing was sent and the
  /// communicator is as before; Error if the sizes differ; Timeout; PeerLost if a peer has gone.
  virtual void exchange(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                        std::string_view operation) = 0;

  /// A communicator over the ranks that gave the same `color` (>= 0), ordered by `key`, then by
  /// rank.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;

  virtual void set_deadline(std::chrono::milliseconds deadline) = 0;
  virtual std::chrono::milliseconds deadline() const = 0;

  /// Bytes sent to other ranks so far.
  virtual std::uint64_t sent_bytes() const = 0;
};

/// Waits until every rank has come here.
void barrier(Communicator& comm, std::string_view operation = "barrier");

/// Every rank's `mine`, in rank order, into `all` ([size * mine.size()] bytes). Equal sizes.
void all_gather(Communicator& comm, std::span<const std::byte> mine, std::span<std::byte> all,
                std::string_view operation = "all_gather");

/// Every rank's `mine`, in rank order.
template <class T>
std::vector<T> all_gather_value(Communicator& comm, const T& mine,
                                std::string_view operation = "all_gather") {
  static_assert(std::is_trivially_copyable_v<T>, "it travels as bytes");
  std::vector<T> all(static_cast<std::size_t>(comm.size()));
  all_gather(comm, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)),
             operation);
  return all;
}

/// As all_gather, where rank r gives `counts[r]` bytes; `all` holds their sum, in rank order.
void all_gather_v(Communicator& comm, std::span<const std::byte> mine,
                  std::span<const std::size_t> counts, std::span<std::byte> all,
                  std::string_view operation = "all_gather_v");

/// Rank `root`'s bytes to everyone.
void broadcast(Communicator& comm, Rank root, std::span<std::byte> bytes,
               std::string_view operation = "broadcast");

/// Sums (or takes the maximum of) `values` over the ranks, in rank order: the same bits everywhere.
void all_reduce_sum(Communicator& comm, std::span<double> values,
                    std::string_view operation = "all_reduce_sum");
void all_reduce_max(Communicator& comm, std::span<double> values,
                    std::string_view operation = "all_reduce_max");

/// A group of one: sends nothing.
std::unique_ptr<Communicator> make_single_communicator();

/// Runs `body` on `ranks` threads of this process, each with its own communicator over shared
/// memory, and waits for all. If any throws, the others' waits end too, and the first error (by
/// time) is thrown again here.
void run_loopback(int ranks, const std::function<void(Communicator&)>& body,
                  std::chrono::milliseconds deadline = std::chrono::seconds(60));

/// Starts MPI on construction and ends it on destruction; one per process, first thing in main.
/// A program that already started MPI may construct one too; then it neither starts nor ends it.
/// Destroyed by an exception on its way out of main, it does not end MPI (that waits for the
/// peers): the process ends without, and the launcher stops the others.
class MpiSession {
 public:
  MpiSession(int& argc, char**& argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  /// True under mpirun (or srun): more than one process, or a launcher that started just one. Ask
  /// before an MpiSession is made: MPI started alone may set these variables itself.
  static bool launched_by_mpirun();

 private:
  int exceptions_;
  bool owner_ = false;
};

/// A communicator over all processes of the job (a duplicate of MPI_COMM_WORLD). Collective; its
/// deadline is 60 s, as is that of the wait for the others here.
/// @throws Unsupported if no MpiSession is alive; Timeout, whose late
/// ranks are all the others, since MPI does not tell which of them have come.
std::unique_ptr<Communicator> make_mpi_communicator();

/// Over an engine's own MPI communicator: `mpi_comm` points to its `MPI_Comm`, which is duplicated.
std::unique_ptr<Communicator> make_mpi_communicator(const void* mpi_comm);

/// The MPI library that this build uses, with its version.
std::string mpi_library();

}  // namespace kvmesh
