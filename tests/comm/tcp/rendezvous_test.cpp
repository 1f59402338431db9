// Meetings that cannot be, and strangers at the door.
#include <gtest/gtest.h>

#include <boost/asio/write.hpp>
#include <future>
#include <list>

#include "comm/tcp/wire.hpp"
#include "tests/comm/communicator_contract.hpp"
#include "tests/comm/tcp/ranks.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

TcpOptions soon(int rank, int size, std::uint16_t port, std::chrono::milliseconds deadline) {
  TcpOptions options = tcp_options(rank, size, port);
  options.deadline = deadline;
  return options;
}

std::future<std::unique_ptr<Communicator>> meet(const TcpOptions& options) {
  return std::async(std::launch::async, [options] { return make_tcp_communicator(options); });
}

tcp::Endpoint at(std::uint16_t port) { return {tcp::asio::ip::address_v4::loopback(), port}; }

/// A program that is not kvmesh: it connects to a port, or listens there, and may say something.
class Stranger {
 public:
  explicit Stranger(std::string words) : words_(std::move(words)), socket_(io_), acceptor_(io_) {}

  void visit(std::uint16_t port) {
    while (!try_to_visit(port)) std::this_thread::sleep_for(5ms);
  }
  /// False if nobody listens there. Who no longer listens to the words is not asked to.
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

 private:
  std::string words_;
  tcp::asio::io_context io_;
  tcp::Socket socket_;
  tcp::asio::ip::tcp::acceptor acceptor_;
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

void expect_late(std::future<std::unique_ptr<Communicator>>& meeting, Rank waiter,
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

TEST(TcpRendezvous, WaitsForRankZeroToListen) {
  const std::uint16_t port = free_port();
  auto one = meet(tcp_options(1, 2, port));
  std::this_thread::sleep_for(150ms);
  auto zero = meet(tcp_options(0, 2, port));
  EXPECT_EQ(one.get()->rank(), Rank{1});
  EXPECT_EQ(zero.get()->size(), 2);
}

TEST(TcpRendezvous, SaysThatNobodyListens) {
  auto one = meet(soon(1, 2, free_port(), 200ms));
  expect_late(one, Rank{1}, {Rank{0}}, {"refused", "127.0.0.1"});
}

TEST(TcpRendezvous, NamesWhoIsLateOnEveryRank) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 4, port, 600ms));
  auto one = meet(soon(1, 4, port, 5s));
  auto three = meet(soon(3, 4, port, 5s));
  expect_late(zero, Rank{0}, {Rank{2}}, {"600 ms", "rendezvous"});
  expect_late(one, Rank{1}, {Rank{2}}, {"5000 ms"});
  expect_late(three, Rank{3}, {Rank{2}}, {"5000 ms"});
}

TEST(TcpRendezvous, ARankWhoseDeadlineEndsFirstNamesTheOthersToo) {
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 4, port));
  auto one = meet(soon(1, 4, port, 500ms));
  expect_late(one, Rank{1}, {Rank{2}, Rank{3}}, {"500 ms"});

  // It may come again, and the others were only late.
  auto one_again = meet(tcp_options(1, 4, port));
  auto two = meet(tcp_options(2, 4, port));
  std::this_thread::sleep_for(100ms);
  auto three = meet(tcp_options(3, 4, port));
  for (auto* meeting : {&zero, &one_again, &two, &three}) EXPECT_EQ(meeting->get()->size(), 4);
}

TEST(TcpRendezvous, RefusesARankThatIsThereTwice) {
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 3, port));
  auto one = meet(tcp_options(1, 3, port));
  auto also_one = meet(tcp_options(1, 3, port));
  for (auto* meeting : {&zero, &one, &also_one}) {
    expect_fails<RendezvousError>(*meeting, {"rank 1", "already"});
  }
}

TEST(TcpRendezvous, RefusesASecondRankZero) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 2, port, 400ms));
  std::this_thread::sleep_for(100ms);
  auto also_zero = meet(soon(0, 2, port, 400ms));
  expect_fails<RendezvousError>(also_zero, {"cannot listen", "in use"});
  expect_late(zero, Rank{0}, {Rank{1}}, {});
}

TEST(TcpRendezvous, RefusesAnotherSize) {
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 3, port));
  auto two = meet(tcp_options(2, 4, port));
  for (auto* meeting : {&zero, &two}) {
    expect_fails<RendezvousError>(*meeting, {"rank 2 of 4 ranks", "a job of 3"});
  }
}

// Some have connected when rank 0 gives up, and were not welcomed yet.
TEST(TcpRendezvous, RefusesInTheMiddleOfACrowd) {
  constexpr int kRanks = 16, kWrong = 3;
  for (int round = 0; round < 10; ++round) {
    const std::uint16_t port = free_port();
    auto zero = meet(tcp_options(0, kRanks, port));
    std::list<Stranger> crowd;
    for (int rank = 1; rank < kRanks; ++rank) {
      tcp::Hello hello;
      hello.rank = static_cast<std::uint32_t>(rank);
      hello.size = rank == kWrong ? kRanks + 1 : kRanks;
      crowd.emplace_back(std::string(reinterpret_cast<const char*>(&hello), sizeof hello));
      if (rank < kWrong) {
        crowd.back().visit(port);
      } else {
        crowd.back().try_to_visit(port);  // rank 0 may have left
      }
    }
    expect_fails<RendezvousError>(zero, {"rank 3 of 17 ranks", "a job of 16"});
  }
}

TEST(TcpRendezvous, GoesOnDespiteStrangers) {
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 2, port));
  Stranger silent("");
  Stranger web_client("GET / HTTP/1.1\r\n\r\n");
  silent.visit(port);
  web_client.visit(port);
  auto one = meet(tcp_options(1, 2, port));
  EXPECT_EQ(zero.get()->size(), 2);
  EXPECT_EQ(one.get()->size(), 2);
}

TEST(TcpRendezvous, TellsOfStrangersIfRanksAreMissing) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 2, port, 400ms));
  Stranger silent("");
  Stranger web_client("GET / HTTP/1.1\r\n\r\n");
  silent.visit(port);
  web_client.visit(port);
  expect_late(zero, Rank{0}, {Rank{1}},
              {"1 that did not speak kvmesh", "127.0.0.1:", "1 that said nothing"});
}

TEST(TcpRendezvous, NoticesAnotherProgramOnRankZerosPort) {
  const std::uint16_t port = free_port();
  Stranger server("SSH-2.0-OpenSSH_9.2\r\n");
  server.listen(port);
  auto one = meet(tcp_options(1, 2, port));
  server.answer();
  expect_fails<RendezvousError>(one, {"another program", std::to_string(port)});
}

TEST(TcpRendezvous, NoticesASilentProgramOnRankZerosPort) {
  const std::uint16_t port = free_port();
  Stranger server("");
  server.listen(port);
  auto one = meet(soon(1, 2, port, 200ms));
  server.answer();
  expect_late(one, Rank{1}, {Rank{0}}, {"says nothing"});
}

TEST(TcpRendezvous, RefusesWrongOptions) {
  const std::uint16_t port = free_port();
  const auto refuses = [](const TcpOptions& options) {
    EXPECT_THROW(make_tcp_communicator(options), InvalidArgument);
  };
  refuses(tcp_options(0, 0, port));
  refuses(tcp_options(2, 2, port));
  refuses(tcp_options(-1, 2, port));
  refuses(tcp_options(0, 2, 0));
  refuses(tcp_options(0, PageId::kMaxRanks + 1, port));
  refuses(soon(0, 2, port, 0ms));
  TcpOptions no_host = tcp_options(1, 2, port);
  no_host.host.clear();
  refuses(no_host);
}

TEST(TcpRendezvous, SaysThatAHostDoesNotExist) {
  TcpOptions options = soon(1, 2, free_port(), 100ms);
  options.host = "nowhere.invalid";
  auto one = meet(options);
  expect_late(one, Rank{1}, {Rank{0}}, {"nowhere.invalid"});
}

}  // namespace
}  // namespace kvmesh::test
