#include "comm/mpi_requests.hpp"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <thread>

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

// One tag for all: MPI keeps the order of messages between two ranks, and calls are in one order.
constexpr int kTag = 0;

// How a rank waits. A peer that is on time answers within a few polls (2 KB among four ranks on two
// cores: 8 us), so first it polls and yields the core after each poll. A peer that computes
// longer than that needs the core more than we do, and a yield does not give it away for long when
// everyone yields: then it sleeps between polls, which costs a late message 0.1 ms at most.
constexpr int kPollsBeforeYield = 10;
constexpr auto kYieldFor = std::chrono::milliseconds(1);
constexpr auto kSleep = std::chrono::microseconds(30);

void back_off(Clock::duration waited) {
  if (waited < kYieldFor) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(kSleep);
  }
}

std::string mpi_message(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return {text.data(), static_cast<std::size_t>(length)};
}

int error_class(int code) {
  int result = MPI_ERR_UNKNOWN;
  MPI_Error_class(code, &result);
  return result;
}

}  // namespace

void check_mpi(int code, std::string_view operation) {
  if (code != MPI_SUCCESS) throw Error(fmt::format("{}: {}", operation, mpi_message(code)));
}

void MpiRequests::receive(const Incoming& in, std::string_view operation) {
  for (std::size_t at = 0; at < in.bytes.size(); at += chunk_bytes_) {
    const int bytes = static_cast<int>(std::min(chunk_bytes_, in.bytes.size() - at));
    messages_.push_back({in.from, bytes, true});
    check_mpi(MPI_Irecv(in.bytes.data() + at, bytes, MPI_BYTE, in.from.value, kTag, comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)),
              operation);
  }
}

void MpiRequests::send(const Outgoing& out, std::string_view operation) {
  for (std::size_t at = 0; at < out.bytes.size(); at += chunk_bytes_) {
    const int bytes = static_cast<int>(std::min(chunk_bytes_, out.bytes.size() - at));
    messages_.push_back({out.to, bytes, false});
    check_mpi(MPI_Isend(out.bytes.data() + at, bytes, MPI_BYTE, out.to.value, kTag, comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)),
              operation);
  }
}

void MpiRequests::wait(std::chrono::milliseconds deadline, std::string_view operation) {
  const int count = static_cast<int>(requests_.size());
  statuses_.resize(requests_.size());
  const Clock::time_point start = Clock::now();
  for (int polls = 0;; ++polls) {
    int done = 0;
    const int code = MPI_Testall(count, requests_.data(), &done, statuses_.data());
    if (done != 0 || code != MPI_SUCCESS) {
      check_lengths(code, operation);
      break;
    }
    if (polls < kPollsBeforeYield) continue;
    const Clock::duration waited = Clock::now() - start;
    if (waited >= deadline) throw Timeout(waiter_, not_done(), std::string(operation), deadline);
    back_off(waited);
  }
  requests_.clear();
  messages_.clear();
}

void MpiRequests::check_lengths(int code, std::string_view operation) {
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(code, operation);
  for (std::size_t i = 0; i < messages_.size(); ++i) {
    const Message& message = messages_[i];
    const int error = code == MPI_SUCCESS ? MPI_SUCCESS : statuses_[i].MPI_ERROR;
    if (error == MPI_ERR_PENDING || !message.incoming) continue;
    if (error_class(error) == MPI_ERR_TRUNCATE) {
      throw Error(fmt::format("{}: rank {} expects {} bytes from rank {}, which sends more",
                              operation, waiter_.value, message.bytes, message.peer.value));
    }
    check_mpi(error, operation);
    int received = 0;
    check_mpi(MPI_Get_count(&statuses_[i], MPI_BYTE, &received), operation);
    if (received != message.bytes) {
      throw Error(fmt::format("{}: rank {} expects {} bytes from rank {}, which sends {}",
                              operation, waiter_.value, message.bytes, message.peer.value,
                              received));
    }
  }
}

std::vector<Rank> MpiRequests::not_done() {
  std::vector<Rank> ranks;
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    int done = 0;
    MPI_Test(&requests_[i], &done, MPI_STATUS_IGNORE);
    if (done == 0) ranks.push_back(messages_[i].peer);
  }
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

void MpiRequests::abandon() {
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    if (messages_[i].incoming) MPI_Cancel(&requests_[i]);
    MPI_Request_free(&requests_[i]);
  }
  requests_.clear();
  messages_.clear();
}

}  // namespace kvmesh
