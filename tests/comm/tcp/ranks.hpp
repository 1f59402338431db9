// Ranks that meet by TCP on 127.0.0.1: threads of the test, or processes of their own.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/tcp/io.hpp"
#include "kvmesh/tcp.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {

/// Returns a free port of 127.0.0.1, below those that the system gives to clients.
inline std::uint16_t free_port() {
  static std::mt19937 random(std::random_device{}());
  tcp::asio::io_context io;
  while (true) {
    const auto port = static_cast<std::uint16_t>(10000 + random() % 20000);
    tcp::asio::ip::tcp::acceptor acceptor(io);
    acceptor.open(tcp::asio::ip::tcp::v4());
    tcp::ErrorCode error;
    acceptor.bind({tcp::asio::ip::address_v4::loopback(), port}, error);
    if (!error) return port;
  }
}

inline TcpOptions tcp_options(int rank, int size, std::uint16_t port) {
  return {.rank = rank, .size = size, .port = port, .deadline = kTestDeadline};
}

/// Ranks as threads. Each keeps its connections until all are done, as a process does that
/// continues; if a body throws, its connections end, so that the others notice.
template <int Count>
struct TcpRanks {
  static std::string name() { return "Tcp" + std::to_string(Count); }
  using OptionsOf = std::function<TcpOptions(int rank, std::uint16_t port)>;

  static void run(const RankBody& body) {
    run(body, [](int rank, std::uint16_t port) { return tcp_options(rank, Count, port); });
  }
  /// Each rank's options are made in its thread.
  static void run(const RankBody& body, const OptionsOf& options_of) {
    const std::uint16_t port = free_port();
    std::array<std::unique_ptr<Communicator>, Count> comms;
    std::mutex mutex;
    std::exception_ptr first_error;
    {
      std::vector<std::jthread> threads;
      for (int rank = 0; rank < Count; ++rank) {
        threads.emplace_back([&, rank] {
          auto& comm = comms[static_cast<std::size_t>(rank)];
          try {
            comm = make_tcp_communicator(options_of(rank, port));
            run_body(body, *comm);
          } catch (...) {
            comm.reset();
            const std::lock_guard lock(mutex);
            if (!first_error) first_error = std::current_exception();
          }
        });
      }
    }
    if (first_error) std::rethrow_exception(first_error);
  }
};

/// A pipe. The reading end reaches the end when every writer has closed it or died.
class Pipe {
 public:
  Pipe() { EXPECT_EQ(::pipe(ends_.data()), 0); }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  bool read_byte() { return ::read(ends_[0], &byte_, 1) == 1; }
  void write_byte() { EXPECT_EQ(::write(ends_[1], &byte_, 1), 1); }
  void close_writer() { close_end(1); }

 private:
  void close_end(std::size_t end) {
    if (ends_[end] >= 0) ::close(std::exchange(ends_[end], -1));
  }
  std::array<int, 2> ends_{-1, -1};
  char byte_ = 0;
};

/// Ranks as processes. A failure that a child prints becomes its exit status, which fails the test
/// here.
template <int Count>
struct TcpProcesses {
  static std::string name() { return "TcpProcesses" + std::to_string(Count); }
  static void run(const RankBody& body) {
    const std::uint16_t port = free_port();
    Pipe finished;
    Pipe leave;
    std::vector<pid_t> children;
    std::cout << std::flush;
    for (int rank = 0; rank < Count; ++rank) {
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) be_rank(body, tcp_options(rank, Count, port), finished, leave);
      children.push_back(child);
    }
    finished.close_writer();
    for (int done = 0; done < Count && finished.read_byte();) ++done;
    leave.close_writer();
    for (int rank = 0; rank < Count; ++rank) {
      int status = -1;
      ::waitpid(children[static_cast<std::size_t>(rank)], &status, 0);
      EXPECT_EQ(status, 0) << "the process of rank " << rank;
    }
  }

 private:
  [[noreturn]] static void be_rank(const RankBody& body, const TcpOptions& options, Pipe& finished,
                                   Pipe& leave) {
    try {
      const std::unique_ptr<Communicator> comm = make_tcp_communicator(options);
      run_body(body, *comm);
      finished.write_byte();
      leave.close_writer();
      leave.read_byte();  // comes to an end when all are done
    } catch (const std::exception& error) {
      std::cerr << "rank " << options.rank << ": " << error.what() << std::endl;
      ::_exit(2);
    }
    std::cout << std::flush;
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
};

}  // namespace kvmesh::test
