#include "comm/mpi/mpi.hpp"

#include <mpi.h>

#include <algorithm>
#include <thread>

#include "comm/common/communicator_base.hpp"
#include "comm/common/split_members.hpp"
#include "comm/mpi/requests.hpp"
#include "core/check.hpp"

namespace kvmesh {
namespace {

constexpr std::size_t kChunkBytes = std::size_t{1} << 30;

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

std::vector<int> all_ranks_of(MPI_Comm comm) {
  std::vector<int> ranks;
  for (int r = 0; r < size_of(comm); ++r) ranks.push_back(r);
  return ranks;
}

/// A duplicate of an MPI_Comm, shared by all groups that are split from it. Each group's messages
/// have their own tag. (MPI_Comm_split would make a communicator for each, but it blocks without a
/// deadline.)
class SharedComm {
 public:
  SharedComm(MPI_Comm owned, std::size_t chunk_bytes) : comm(owned), chunk_bytes(chunk_bytes) {
    check_mpi(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    int level = 0;
    check_mpi(MPI_Query_thread(&level), "MPI_Query_thread");
    main_thread_only_ = level < MPI_THREAD_SERIALIZED;
  }
  /// MPI_Comm_free is local in Open MPI and MPICH unless messages are under way. So after a failure
  /// the communicator is not freed.
  ~SharedComm() {
    if (!is_broken && mpi_is_alive()) MPI_Comm_free(&comm);
  }
  SharedComm(const SharedComm&) = delete;
  SharedComm& operator=(const SharedComm&) = delete;

  /// Throws Unsupported if the engine has started MPI for its main thread only and this is another.
  void check_thread(std::string_view operation) const {
    if (!main_thread_only_) return;
    int is_main = 0;
    check_mpi(MPI_Is_thread_main(&is_main), operation);
    if (is_main != 0) return;
    throw Unsupported(fmt::format(
        "{}: MPI was started without MPI_THREAD_SERIALIZED, so only the thread that started it can "
        "use it",
        operation));
  }

  int largest_tag() const {
    int* tag = nullptr;
    int is_set = 0;
    check_mpi(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag, &is_set), "MPI_Comm_get_attr");
    return is_set != 0 ? *tag : 32767;  // the least that the standard allows
  }

  MPI_Comm comm;
  std::size_t chunk_bytes;
  int next_tag = 0;  // larger than the tags of all groups that this rank is in
  bool is_broken = false;

 private:
  bool main_thread_only_ = false;
};

class MpiCommunicator final : public CommunicatorBase {
 public:
  /// `members[r]` is the rank in `shared` of rank r.
  MpiCommunicator(std::shared_ptr<SharedComm> shared, std::vector<int> members, Rank rank, int tag,
                  std::chrono::milliseconds deadline)
      : CommunicatorBase(rank, static_cast<int>(members.size()), deadline),
        shared_(std::move(shared)),
        members_(std::move(members)),
        requests_(shared_->comm, tag, members_, rank, shared_->chunk_bytes) {
    shared_->next_tag = tag + 1;
  }

  std::string_view kind() const override { return "mpi"; }

 private:
  std::unique_ptr<Communicator> make_part(int color, int key) override {
    const std::vector<Rank> chosen = split_members(*this, color, key);
    std::vector<int> members;
    for (const Rank member : chosen) members.push_back(members_[index(member)]);
    const auto mine = std::ranges::find(chosen, rank()) - chosen.begin();
    return std::make_unique<MpiCommunicator>(shared_, std::move(members),
                                             Rank{static_cast<std::int32_t>(mine)}, unused_tag(),
                                             deadline());
  }

  static std::size_t index(Rank rank) { return static_cast<std::size_t>(rank.value); }

  /// Returns a tag that no two ranks of this group share yet. All groups of one split get the same
  /// tag, since they have no rank in common.
  int unused_tag() {
    const int tag = std::ranges::max(all_gather_value(*this, shared_->next_tag, "split"));
    if (tag < shared_->largest_tag()) return tag;
    throw Error(fmt::format("split: MPI has {} tags, one for each group, and they are used up",
                            shared_->largest_tag()));
  }

  void exchange_with_others(std::span<const Outgoing> outgoing, std::span<const Incoming> incoming,
                            std::string_view operation) override {
    require(mpi_is_alive(), "{}: MPI has been finalized", operation);
    shared_->check_thread(operation);
    for (const Incoming& in : incoming) {
      if (in.from != rank()) requests_.expect(in);
    }
    send_to_others(outgoing, operation);
    requests_.wait(deadline(), operation);
  }

  void break_off(std::span<const Outgoing>) override {
    shared_->is_broken = true;
    if (mpi_is_alive()) requests_.abandon();
  }

  /// Each rank begins with the next rank, so that not all send to rank 0 at once.
  void send_to_others(std::span<const Outgoing> outgoing, std::string_view operation) {
    const auto send_if = [&](auto wanted) {
      for (const Outgoing& out : outgoing) {
        if (wanted(out.to)) requests_.send(out, operation);
      }
    };
    send_if([&](Rank to) { return to > rank(); });
    send_if([&](Rank to) { return to < rank(); });
  }

  std::shared_ptr<SharedComm> shared_;
  std::vector<int> members_;  // [rank], as ranks of the shared communicator
  MpiRequests requests_;
};

/// The variables that MPI writes while it duplicates a communicator.
struct Duplicate {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;
};

/// All other ranks: MPI does not report which of them are late.
std::vector<Rank> others_in(MPI_Comm comm) {
  std::vector<Rank> others;
  const Rank mine{rank_in(comm)};
  for (int r = 0; r < size_of(comm); ++r) {
    if (r != mine.value) others.push_back(Rank{r});
  }
  return others;
}

/// @throws InvalidArgument unless the communicator has one group of ranks.
void require_one_group(MPI_Comm comm) {
  int is_inter = 0;
  check_mpi(MPI_Comm_test_inter(comm, &is_inter), "MPI_Comm_test_inter");
  require(
      is_inter == 0,
      "make_mpi_communicator: an intercommunicator has two groups of ranks: merge them first, by "
      "MPI_Intercomm_merge");
}

std::unique_ptr<Communicator> duplicate(MPI_Comm original, std::size_t chunk_bytes,
                                        std::chrono::milliseconds deadline) {
  if (!mpi_is_alive()) {
    throw Unsupported(
        "MPI is not running: at the start of main make a MpiSession, in C with "
        "kvmesh_mpi_session_create");
  }
  require_one_group(original);
  deadline = checked_deadline(deadline);
  auto made = std::make_unique<Duplicate>();
  check_mpi(MPI_Comm_idup(original, &made->copy, &made->request), "make_mpi_communicator");
  const auto until = std::chrono::steady_clock::now() + deadline;
  for (int done = 0; done == 0; std::this_thread::yield()) {
    check_mpi(MPI_Test(&made->request, &done, MPI_STATUS_IGNORE), "make_mpi_communicator");
    if (done == 0 && std::chrono::steady_clock::now() >= until) {
      made.release();  // never freed: MPI writes to it when the others come
      throw Timeout(Rank{rank_in(original)}, others_in(original), "make_mpi_communicator",
                    deadline);
    }
  }
  auto shared = std::make_shared<SharedComm>(made->copy, chunk_bytes);
  return std::make_unique<MpiCommunicator>(std::move(shared), all_ranks_of(made->copy),
                                           Rank{rank_in(made->copy)}, 0, deadline);
}

}  // namespace

bool mpi_is_alive() {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized != 0 && finalized == 0;
}

std::unique_ptr<Communicator> make_mpi_communicator(std::chrono::milliseconds deadline) {
  return duplicate(MPI_COMM_WORLD, kChunkBytes, deadline);
}

std::unique_ptr<Communicator> make_mpi_communicator(const void* mpi_comm,
                                                    std::chrono::milliseconds deadline) {
  require(mpi_comm != nullptr, "make_mpi_communicator: no MPI_Comm given");
  const MPI_Comm comm = *static_cast<const MPI_Comm*>(mpi_comm);
  require(comm != MPI_COMM_NULL, "make_mpi_communicator: MPI_COMM_NULL given");
  return duplicate(comm, kChunkBytes, deadline);
}

std::unique_ptr<Communicator> make_chunked_mpi_communicator(std::size_t chunk_bytes,
                                                            std::chrono::milliseconds deadline) {
  require(chunk_bytes > 0 && chunk_bytes <= kChunkBytes,
          "make_chunked_mpi_communicator: {} bytes, want 1 to {}", chunk_bytes, kChunkBytes);
  return duplicate(MPI_COMM_WORLD, chunk_bytes, deadline);
}

}  // namespace kvmesh
