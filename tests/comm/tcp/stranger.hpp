// Meetings for tests of the rendezvous, and programs that are no ranks of the job.
#pragma once

#include <gtest/gtest.h>

#include <boost/asio/write.hpp>
#include <future>

#include "comm/tcp/wire.hpp"
#include "tests/comm/communicator_contract.hpp"
#include "tests/comm/tcp/ranks.hpp"

namespace kvmesh::test {

inline TcpOptions soon(int rank, int size, std::uint16_t port, std::chrono::milliseconds deadline) {
  TcpOptions options = tcp_options(rank, size, port);
  options.deadline = deadline;
  return options;
}

inline std::future<std::unique_ptr<Communicator>> meet(const TcpOptions& options) {
  return std::async(std::launch::async, [options] { return make_tcp_communicator(options); });
}

inline tcp::Endpoint at(std::uint16_t port) {
  return {tcp::asio::ip::address_v4::loopback(), port};
}

/// A program that is not kvmesh: it connects to a port, or listens there, and may send something.
class Stranger {
 public:
  explicit Stranger(std::string words) : words_(std::move(words)), socket_(io_), acceptor_(io_) {}

  void visit(std::uint16_t port) {
    while (!try_to_visit(port)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  /// Returns false if no program listens there.
  bool try_to_visit(std::uint16_t port) {
    tcp::ErrorCode error;
    socket_ = tcp::Socket(io_);
    socket_.connect(at(port), error);
    if (error) return false;
    tcp::asio::write(socket_, tcp::asio::buffer(words_), error);
    return true;
  }

  void listen(std::uint16_t port) {
    acceptor_.open(tcp::asio::ip::tcp::v4());
    acceptor_.set_option(tcp::asio::ip::tcp::acceptor::reuse_address(true));
    acceptor_.bind(at(port));
    acceptor_.listen();
  }
  void answer() {
    acceptor_.accept(socket_);
    tcp::asio::write(socket_, tcp::asio::buffer(words_));
  }

  /// Returns false after stop().
  bool try_to_answer() {
    tcp::ErrorCode error;
    tcp::Socket caller(io_);
    acceptor_.accept(caller, error);
    if (error) return false;
    tcp::asio::write(caller, tcp::asio::buffer(words_), error);
    return true;
  }
  void stop() { ::shutdown(acceptor_.native_handle(), SHUT_RDWR); }

 private:
  std::string words_;
  tcp::asio::io_context io_;
  tcp::Socket socket_;
  tcp::asio::ip::tcp::acceptor acceptor_;
};

/// Connections that send nothing.
class SilentCrowd {
 public:
  SilentCrowd(std::uint16_t port, int count) {
    for (int i = 0; i < count; ++i) visit(port);
  }

 private:
  void visit(std::uint16_t port) {
    tcp::ErrorCode error = tcp::asio::error::not_connected;
    while (error) {
      tcp::Socket socket(io_);
      socket.connect(at(port), error);
      if (!error) sockets_.push_back(std::move(socket));
    }
  }

  tcp::asio::io_context io_;
  std::vector<tcp::Socket> sockets_;
};

template <class Expected>
void expect_fails(std::future<std::unique_ptr<Communicator>>& meeting,
                  const std::vector<std::string>& words) {
  try {
    meeting.get();
    FAIL() << "they met";
  } catch (const Expected& error) {
    expect_says(error, words);
  }
}

inline void expect_late(std::future<std::unique_ptr<Communicator>>& meeting, Rank waiter,
                        const std::vector<Rank>& late, const std::vector<std::string>& words) {
  try {
    meeting.get();
    FAIL() << "they met";
  } catch (const Timeout& timeout) {
    EXPECT_EQ(timeout.waiter(), waiter);
    EXPECT_EQ(timeout.late(), late);
    expect_says(timeout, words);
  }
}

}  // namespace kvmesh::test
