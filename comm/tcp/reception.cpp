#include "comm/tcp/reception.hpp"

#include <fmt/format.h>

#include <boost/asio/read.hpp>

#include "kvmesh/tcp.hpp"

namespace kvmesh::tcp {

Reception::Reception(asio::io_context& io, const Endpoint& at) : io_(&io), acceptor_(io) {
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
  for (Guest& guest : silent_) guest.socket.close(ignored);
  io_->restart();
  io_->poll();  // the handlers, which name this object, run now with an error
}

void Reception::accept() {
  acceptor_.async_accept([this](const ErrorCode& error, Socket socket) {
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
    if (!error) {
      prepare(socket);
      listen_to(silent_.insert(silent_.end(), Guest{std::move(socket)}));
    } else if (error != asio::error::connection_aborted) {
      throw RendezvousError(fmt::format("cannot accept connections: {}", error.message()));
    }
    accept();
  });
}

/// Only the magic first: a stranger that speaks little still shows itself.
void Reception::listen_to(std::list<Guest>::iterator guest) {
  const auto is_foreign = [this, guest](const ErrorCode& error) {
    if (error == asio::error::operation_aborted) return true;
    if (!error && guest->hello.magic == kMagic) return false;
    ++foreign_;
    last_foreign_ = other_end(guest->socket);
    silent_.erase(guest);
    return true;
  };
  constexpr std::size_t kFirst = sizeof(Hello::magic);
  asio::async_read(guest->socket, asio::buffer(&guest->hello, kFirst),
                   [this, guest, is_foreign](const ErrorCode& error, std::size_t) {
                     if (is_foreign(error)) return;
                     const auto rest = asio::buffer(&guest->hello, sizeof(Hello)) + kFirst;
                     asio::async_read(
                         guest->socket, rest,
                         [this, guest, is_foreign](const ErrorCode& late_error, std::size_t) {
                           if (is_foreign(late_error)) return;
                           arrived_.push_back(std::move(*guest));
                           silent_.erase(guest);
                           news_ = ErrorCode{};
                         });
                   });
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
  if (foreign_ == 0 && silent_.empty()) return {};
  const std::string last = foreign_ == 0 ? "" : fmt::format(", the last from {}", last_foreign_);
  return fmt::format(" (also came: {} that did not speak kvmesh{}, {} that said nothing)", foreign_,
                     last, silent_.size());
}

}  // namespace kvmesh::tcp
