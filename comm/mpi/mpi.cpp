#include "comm/mpi/mpi.hpp"

#include <mpi.h>

#include <array>
#include <exception>
#include <thread>

#include "comm/communicator_base.hpp"
#include "comm/mpi/requests.hpp"
#include "comm/split_members.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 30;
constexpr std::chrono::milliseconds kDefaultDeadline = std::chrono::seconds(60);

bool mpi_is_alive() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

int rank_in(MPI_Comm comm) {
  int rank = 0;
  check_mpi(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  return rank;
}

int size_of(MPI_Comm comm) {
  int size = 0;
  check_mpi(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  return size;
}

/// Owns its MPI_Comm, which nobody else uses: so one tag is enough, and errors return to us.
class MpiCommunicator final : public CommunicatorBase {
 public:
  MpiCommunicator(MPI_Comm owned, std::size_t chunk_bytes, std::chrono::milliseconds deadline)
      : CommunicatorBase(Rank{rank_in(owned)}, size_of(owned), deadline),
        comm_(owned),
        chunk_bytes_(chunk_bytes),
        requests_(owned, rank(), chunk_bytes) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }

  /// Freeing is a local act in the MPI libraries we know, but not while messages are under way, so
  /// a broken communicator is left to the end of the process.
  ~MpiCommunicator() override {
    if (!is_broken() && mpi_is_alive()) MPI_Comm_free(&comm_);
  }

  std::string_view kind() const override { return "mpi"; }

  /// The members meet here first, with a deadline: after that MPI's own wait is short.
  std::unique_ptr<Communicator> split(int color, int key) override {
    split_members(*this, color, key);
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, color, key, &part), "split");
    return std::make_unique<MpiCommunicator>(part, chunk_bytes_, deadline());
  }

 private:
  void exchange_with_others(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                            std::string_view operation) override {
    require(mpi_is_alive(), "{}: MPI has been finalized", operation);
    for (const Incoming& in : incoming) {
      if (in.from != rank()) requests_.expect(in);
    }
    send_to_others(outgoing, operation);
    requests_.wait(deadline(), operation);
  }

  void break_off(std::span<const Outgoing>) override { requests_.abandon(); }

  /// Each rank begins with the one after it, so that not all send to rank 0 at once.
  void send_to_others(std::span<const Outgoing> outgoing, std::string_view operation) {
    const auto send_if = [&](auto wanted) {
      for (const Outgoing& out : outgoing) {
        if (wanted(out.to)) requests_.send(out, operation);
      }
    };
    send_if([&](Rank to) { return to > rank(); });
    send_if([&](Rank to) { return to < rank(); });
  }

  MPI_Comm comm_;
  std::size_t chunk_bytes_;
  MpiRequests requests_;
};

/// What MPI writes to while it duplicates a communicator.
struct Duplicate {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
};

/// MPI does not tell which of them have not come.
std::vector<Rank> others_in(MPI_Comm comm) {
  std::vector<Rank> others;
  const Rank mine{rank_in(comm)};
  for (int r = 0; r < size_of(comm); ++r) {
    if (r != mine.value) others.push_back(Rank{r});
  }
  return others;
}

std::unique_ptr<Communicator> duplicate(MPI_Comm original, std::size_t chunk_bytes,
                                        std::chrono::milliseconds deadline = kDefaultDeadline) {
  if (!mpi_is_alive()) {
    throw Unsupported("MPI is not running: make a MpiSession first, at the start of main");
  }
  auto made = std::make_unique<Duplicate>();
  check_mpi(MPI_Comm_idup(original, &made->copy, &made->request), "make_mpi_communicator");
  const auto until = std::chrono::steady_clock::now() + deadline;
  for (int done = 0; done == 0; std::this_thread::yield()) {
    check_mpi(MPI_Test(&made->request, &done, MPI_STATUS_IGNORE), "make_mpi_communicator");
    if (done == 0 && std::chrono::steady_clock::now() >= until) {
      made.release();  // to the end of the process: MPI goes on with it when the others come
      throw Timeout(Rank{rank_in(original)}, others_in(original), "make_mpi_communicator",
                    deadline);
    }
  }
  return std::make_unique<MpiCommunicator>(made->copy, chunk_bytes, deadline);
}

}  // namespace

MpiSession::MpiSession(int& argc, char**& argv) : exceptions_(std::uncaught_exceptions()) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) return;
  int provided = 0;
  check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  owner_ = true;
}

MpiSession::~MpiSession() {
  // MPI_Finalize waits for the peers. A rank that is unwinding must not: it leaves without a word,
  // and the launcher ends the others.
  if (owner_ && mpi_is_alive() && std::uncaught_exceptions() == exceptions_) MPI_Finalize();
}

std::unique_ptr<Communicator> make_mpi_communicator() {
  return duplicate(MPI_COMM_WORLD, kChunkBytes);
}

std::unique_ptr<Communicator> make_mpi_communicator(const void* mpi_comm) {
  require(mpi_comm != nullptr, "make_mpi_communicator: no MPI_Comm given");
  return duplicate(*static_cast<const MPI_Comm*>(mpi_comm), kChunkBytes);
}

std::unique_ptr<Communicator> make_chunked_mpi_communicator(std::size_t chunk_bytes,
                                                            std::chrono::milliseconds deadline) {
  require(chunk_bytes > 0 && chunk_bytes <= kChunkBytes,
          "make_chunked_mpi_communicator: {} bytes, want 1 to {}", chunk_bytes, kChunkBytes);
  return duplicate(MPI_COMM_WORLD, chunk_bytes, deadline);
}

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string all(text.data(), static_cast<std::size_t>(length));
  return all.substr(0, all.find(','));  // Open MPI goes on with how and when it was built
}

}  // namespace kvmesh
