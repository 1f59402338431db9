#include "comm/tcp/reception.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/read.hpp>
#include <boost/asio/write.hpp>

#include "comm/tcp/address.hpp"
#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {
namespace {

// How many connections may be unknown at a time, besides one per rank.
constexpr std::size_t kUnknown = 128;
// When the system has no descriptor for another connection, the next attempt is this much later.
constexpr auto kAcceptAgain = std::chrono::milliseconds(20);

constexpr const char* kNotKvmesh = "that did not speak kvmesh";
constexpr const char* kOtherVersion = "of another version of kvmesh";
constexpr const char* kOtherJob = "of another job or with another secret";
constexpr const char* kPublic = "from public addresses, where there is no secret";

}  // namespace

Reception::Reception(asio::io_context& io, const Endpoint& at, const Credentials& credentials,
                     int ranks)
    : io_(&io),
      credentials_(credentials),
      most_visits_(kUnknown + static_cast<std::size_t>(ranks)),
      acceptor_(io),
      pause_(io) {
  try {
    acceptor_.open(at.protocol());
    acceptor_.set_option(asio::ip::tcp::acceptor::reuse_address(true));
    acceptor_.bind(at);
    acceptor_.listen();
  } catch (const boost::system::system_error& error) {
    throw RendezvousError(
        fmt::format("cannot listen on {}: {}", to_string(at), error.code().message()));
  }
  accept();
}

Reception::~Reception() {
  ErrorCode ignored;
  acceptor_.close(ignored);
  pause_.cancel();
  for (Visit& visit : visits_) visit.socket.close(ignored);
  io_->restart();
  io_->poll();  // the handlers, which name this object, run now with an error
}

void Reception::accept() {
  acceptor_.async_accept([this](const ErrorCode& error, Socket socket) {
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
    if (error && error != asio::error::connection_aborted) return accept_later(error);
    if (!error && !may_come(socket)) {
      note(kPublic, socket);
    } else if (!error) {
      prepare(socket);
      if (visits_.size() >= most_visits_) close_oldest();
      read_hello(visits_.insert(visits_.end(), Visit{std::move(socket)}));
    }
    accept();
  });
}

/// Too many descriptors are open, mostly.
void Reception::accept_later(const ErrorCode& why) {
  accept_error_ = why.message();
  close_oldest();
  pause_.expires_after(kAcceptAgain);
  pause_.async_wait([this](const ErrorCode& error) {
    if (!error && acceptor_.is_open()) accept();
  });
}

/// Its handler erases it.
void Reception::close_oldest() {
  const auto open = [](const Visit& visit) { return visit.socket.is_open(); };
  const auto oldest = std::ranges::find_if(visits_, open);
  ErrorCode ignored;
  if (oldest != visits_.end()) oldest->socket.close(ignored);
}

bool Reception::may_come(const Socket& socket) const {
  if (!credentials_.secret.empty()) return true;
  ErrorCode gone;
  const Endpoint here = socket.local_endpoint(gone);
  const Endpoint there = socket.remote_endpoint(gone);
  return !gone && is_private(here.address()) && is_private(there.address());
}

/// Only the magic first: a stranger that speaks little still shows itself.
void Reception::read_hello(VisitIterator visit) {
  constexpr std::size_t kFirst = sizeof(Hello::magic);
  asio::async_read(visit->socket, asio::buffer(&visit->hello, kFirst),
                   [this, visit](const ErrorCode& error, std::size_t) {
                     if (!goes_on(error, visit, kNotKvmesh)) return;
                     if (visit->hello.magic != kMagic) return turn_away(visit, kNotKvmesh);
                     asio::async_read(visit->socket,
                                      asio::buffer(&visit->hello, sizeof(Hello)) + kFirst,
                                      [this, visit](const ErrorCode& late_error, std::size_t) {
                                        if (goes_on(late_error, visit, kNotKvmesh)) answer(visit);
                                      });
                   });
}

void Reception::answer(VisitIterator visit) {
  if (visit->hello.version != kVersion) return turn_away(visit, kOtherVersion);
  Challenge& challenge = visit->challenge;
  challenge.nonce = make_nonce();
  challenge.proof = prove(credentials_, Role::kListener, visit->hello.nonce, challenge.nonce);
  asio::async_write(visit->socket, asio::buffer(&challenge, sizeof(challenge)),
                    [this, visit](const ErrorCode& error, std::size_t) {
                      if (goes_on(error, visit, kOtherJob)) read_claim(visit);
                    });
}

void Reception::read_claim(VisitIterator visit) {
  asio::async_read(visit->socket, asio::buffer(&visit->claim, sizeof(Claim)),
                   [this, visit](const ErrorCode& error, std::size_t) {
                     if (!goes_on(error, visit, kOtherJob)) return;
                     const Proof expected = prove(credentials_, Role::kCaller, visit->hello.nonce,
                                                  visit->challenge.nonce, words_of(visit->claim));
                     if (!is_equal(expected, visit->claim.proof))
                       return turn_away(visit, kOtherJob);
                     arrived_.push_back({std::move(visit->socket), visit->claim});
                     visits_.erase(visit);
                     news_ = ErrorCode{};
                   });
}

/// Forgets the visit after an error. One that this side closed is no stranger.
bool Reception::goes_on(const ErrorCode& error, VisitIterator visit, const char* kind_if_not) {
  if (!error) return true;
  if (error == asio::error::operation_aborted) {
    visits_.erase(visit);
  } else {
    turn_away(visit, kind_if_not);
  }
  return false;
}

void Reception::turn_away(VisitIterator visit, const char* kind) {
  note(kind, visit->socket);
  visits_.erase(visit);
}

void Reception::note(const std::string& kind, const Socket& socket) {
  ++strangers_[kind];
  last_stranger_ = other_end(socket);
}

std::optional<Guest> Reception::next(Clock::time_point until) {
  if (arrived_.empty()) {
    news_.reset();
    run_until(*io_, until, news_);
  }
  if (arrived_.empty()) return std::nullopt;
  Guest guest = std::move(arrived_.front());
  arrived_.pop_front();
  return guest;
}

std::string Reception::strangers() const {
  std::string text;
  for (const auto& [kind, count] : strangers_) text += fmt::format("{} {}, ", count, kind);
  if (!text.empty()) text += fmt::format("the last from {}; ", last_stranger_);
  if (!visits_.empty()) text += fmt::format("{} that said nothing; ", visits_.size());
  if (!accept_error_.empty()) text += fmt::format("cannot accept more: {}; ", accept_error_);
  if (text.empty()) return {};
  return fmt::format(" (also came: {})", text.substr(0, text.size() - 2));
}

}  // namespace kvmesh::tcp
