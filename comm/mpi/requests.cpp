#include "comm/mpi/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "comm/common/size_mismatch.hpp"
#include "core/threads/back_off.hpp"

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

// A rank polls this many times before it backs off, because a peer that is on time answers within a
// few polls (2 KB among four ranks on two cores: 8 us).
constexpr int kPollsBeforeYield = 10;

// A receive in progress completes once its sender polls MPI; a live sender polls within this time.
constexpr auto kGrace = std::chrono::seconds(1);

std::string mpi_message(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return {text.data(), static_cast<std::size_t>(length)};
}

bool all_done(std::vector<MPI_Request>& requests, std::string_view operation) {
  int done = 0;
  check_mpi(
      MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE),
      operation);
  return done != 0;
}

void add_unfinished(std::vector<Rank>& ranks, std::vector<MPI_Request>& requests,
                    const std::vector<Rank>& peers) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    int done = 0;
    MPI_Test(&requests[i], &done, MPI_STATUS_IGNORE);
    if (done == 0) ranks.push_back(peers[i]);
  }
}

void free_all(std::vector<MPI_Request>& requests) {
  for (MPI_Request& request : requests) {
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
  }
}

}  // namespace

void check_mpi(int code, std::string_view operation) {
  if (code != MPI_SUCCESS) throw Error(fmt::format("{}: {}", operation, mpi_message(code)));
}

void MpiRequests::send(const Outgoing& out, std::string_view operation) {
  for (std::size_t at = 0; at < out.bytes.size(); at += chunk_bytes_) {
    const std::size_t bytes = std::min(chunk_bytes_, out.bytes.size() - at);
    sends_to_.push_back(out.to);
    check_mpi(MPI_Isend(out.bytes.data() + at, static_cast<int>(bytes), MPI_BYTE, member(out.to),
                        tag_, comm_, &sends_.emplace_back(MPI_REQUEST_NULL)),
              operation);
  }
}

void MpiRequests::expect(const Incoming& in) {
  if (!in.bytes.empty()) expected_.push_back(in);
}

void MpiRequests::wait(std::chrono::milliseconds deadline, std::string_view operation) {
  const Clock::time_point start = Clock::now();
  for (int polls = 0; !poll(operation); ++polls) {
    if (polls < kPollsBeforeYield) continue;
    const Clock::duration waited = Clock::now() - start;
    if (waited >= deadline) throw Timeout(waiter_, late(), std::string(operation), deadline);
    back_off(waited);
  }
  clear();
}

/// Polls everything that is under way once. Returns true if all is done.
bool MpiRequests::poll(std::string_view operation) {
  std::erase_if(expected_, [&](Incoming& in) { return receive_if_there(in, operation); });
  if (!expected_.empty()) return false;
  return all_done(receives_, operation) && all_done(sends_, operation);
}

/// Starts to receive the next chunk of `in` if it has come. True if that was the last one.
bool MpiRequests::receive_if_there(Incoming& in, std::string_view operation) {
  int is_there = 0;
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  check_mpi(MPI_Improbe(member(in.from), tag_, comm_, &is_there, &message, &status), operation);
  if (is_there == 0) return false;

  const int expected = static_cast<int>(std::min(chunk_bytes_, in.bytes.size()));
  int sent = 0;
  check_mpi(MPI_Get_count(&status, MPI_BYTE, &sent), operation);
  if (sent != expected) {
    throw SizeMismatch({std::string(operation), waiter_, static_cast<std::size_t>(expected),
                        in.from, static_cast<std::size_t>(sent)});
  }
  receives_from_.push_back(in.from);
  check_mpi(MPI_Imrecv(in.bytes.data(), expected, MPI_BYTE, &message,
                       &receives_.emplace_back(MPI_REQUEST_NULL)),
            operation);
  in.bytes = in.bytes.subspan(static_cast<std::size_t>(expected));
  return in.bytes.empty();
}

std::vector<Rank> MpiRequests::late() {
  std::vector<Rank> ranks;
  for (const Incoming& in : expected_) ranks.push_back(in.from);
  add_unfinished(ranks, receives_, receives_from_);
  add_unfinished(ranks, sends_, sends_to_);
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return ranks;
}

void MpiRequests::abandon() {
  const Clock::time_point start = Clock::now();
  int done = 0;
  while (done == 0 && Clock::now() - start < kGrace) {
    const int count = static_cast<int>(receives_.size());
    if (MPI_Testall(count, receives_.data(), &done, MPI_STATUSES_IGNORE) != MPI_SUCCESS) break;
    if (done == 0) back_off(Clock::now() - start);
  }
  free_all(receives_);
  free_all(sends_);
  clear();
}

void MpiRequests::clear() {
  expected_.clear();
  receives_.clear();
  receives_from_.clear();
  sends_.clear();
  sends_to_.clear();
}

}  // namespace kvmesh
