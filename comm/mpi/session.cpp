// The start and the end of MPI, which wait for all ranks and know no deadline.
#include <mpi.h>

#include <array>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

#include "comm/mpi/attendance.hpp"
#include "comm/mpi/mpi.hpp"
#include "comm/mpi/requests.hpp"
#include "core/check.hpp"
#include "core/log.hpp"
#include "kvmesh/launcher.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh {
namespace {

constexpr int kEndedByTimeout = 2;
// A rank that gives up stays this long, so that ranks which give up with it see that it has come.
constexpr std::chrono::milliseconds kStay{500};

/// Ends the process if it is not destroyed within `deadline`: nothing else ends a call of MPI.
class Watch {
 public:
  Watch(std::chrono::milliseconds deadline, std::function<std::string()> message)
      : thread_([this, deadline, message = std::move(message)](const std::stop_token& stop) {
          std::unique_lock lock(mutex_);
          const auto is_over = [&] { return stop.stop_requested(); };
          if (over_.wait_for(lock, stop, deadline, is_over) || stop.stop_requested()) return;
          log_line(message());
          std::this_thread::sleep_for(kStay);
          std::_Exit(kEndedByTimeout);
        }) {}

 private:
  std::mutex mutex_;
  std::condition_variable_any over_;
  std::jthread thread_;  // last: it uses the others
};

/// Open MPI starts alone where it finds no PMIx server, and replaces the variables that show the
/// other ranks, so that nothing can notice them later. Where the size is known, it is Slurm's,
/// whose variables remain.
void require_pmix(const Launch& before) {
  if (before.launcher != Launcher::kPmix || before.size != 0) return;
  if (launch_from_environment().launcher == Launcher::kPmix) return;
  throw RendezvousError(fmt::format(
      "PMIx started this process as rank {}, but {} finds no PMIx server and runs alone: start the "
      "program with a launcher of that library, or set KVMESH_RANK, KVMESH_SIZE and "
      "KVMESH_RENDEZVOUS=host:port on every rank, so that the ranks meet by TCP",
      before.rank, mpi_library()));
}

}  // namespace

struct MpiSession::State {
  State(const Launch& started, std::chrono::milliseconds limit)
      : launch(started), deadline(checked_deadline(limit)) {
    if (launch.size > 1) attendance.emplace(launch);
  }

  /// Runs `call`, which returns when all ranks have come.
  void meet(Attendance::Point point, const char* operation, const std::function<void()>& call) {
    if (attendance) attendance->come(point);
    const Watch watch(deadline, [this, point, operation] {
      const std::string message = timeout(point, operation);
      if (attendance) attendance->remove_name();  // the process ends here
      return message;
    });
    call();
  }

  std::string timeout(Attendance::Point point, const char* operation) const {
    if (!attendance) {
      return fmt::format("rank {} waited {} ms in {} for ranks that are not known", launch.rank,
                         deadline.count(), operation);
    }
    return Timeout(Rank{launch.rank}, attendance->missing(point),
                   operation + attendance->note(point), deadline)
        .what();
  }

  Launch launch;
  std::chrono::milliseconds deadline;
  std::optional<Attendance> attendance;
  int exceptions = std::uncaught_exceptions();
};

void check_thread_level(int provided) {
  if (provided >= MPI_THREAD_SERIALIZED) return;
  throw Unsupported(
      fmt::format("this MPI library ({}) provides thread level {}, kvmesh needs "
                  "MPI_THREAD_SERIALIZED ({}): use "
                  "a library that was built with thread support",
                  mpi_library(), provided, MPI_THREAD_SERIALIZED));
}

MpiSession::MpiSession(int& argc, char**& argv, std::chrono::milliseconds deadline) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  const Launch launch = launch_from_environment();
  if (initialized != 0 || launch.by_tcp) return;
  state_ = std::make_unique<State>(launch, deadline);
  int provided = 0;
  state_->meet(Attendance::Point::kStart, "MPI_Init", [&] {
    check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  });
  if (state_->attendance) state_->attendance->remove_name();
  require_pmix(launch);
  check_thread_level(provided);
}

MpiSession::~MpiSession() {
  // MPI_Finalize waits for the peers. A rank that is unwinding must not: it leaves without a word,
  // and the launcher ends the others.
  if (!state_ || !mpi_is_alive() || std::uncaught_exceptions() != state_->exceptions) return;
  state_->meet(Attendance::Point::kEnd, "MPI_Finalize", [] { MPI_Finalize(); });
}

std::string mpi_library() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string all(text.data(), static_cast<std::size_t>(length));
  return all.substr(0, all.find(','));  // Open MPI goes on with how and when it was built
}

}  // namespace kvmesh
