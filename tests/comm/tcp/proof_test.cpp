// Ranks prove the job's secret before they receive anything; a program without it is a stranger.
#include "comm/tcp/proof.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <boost/asio/read.hpp>

#include "comm/tcp/links.hpp"
#include "tests/comm/tcp/stranger.hpp"
#include "tests/support/killed_process.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

TcpOptions of_job(TcpOptions options, std::string secret, std::string job = {}) {
  options.secret = std::move(secret);
  options.job = std::move(job);
  return options;
}

/// Calls rank 0 step by step.
class Caller {
 public:
  explicit Caller(std::uint16_t port) : socket_(io_) {
    tcp::ErrorCode error = tcp::asio::error::not_connected;
    while (error) {
      socket_ = tcp::Socket(io_);
      socket_.connect(at(port), error);
    }
  }
  template <class Message>
  void send(const Message& message) {
    tcp::asio::write(socket_, tcp::asio::buffer(&message, sizeof message));
  }
  tcp::Challenge challenge() {
    tcp::Challenge challenge{};
    tcp::asio::read(socket_, tcp::asio::buffer(&challenge, sizeof challenge));
    return challenge;
  }
  /// Everything received until rank 0 closes the connection.
  std::string rest() {
    std::string text;
    tcp::ErrorCode error;
    tcp::asio::read(socket_, tcp::asio::dynamic_buffer(text), error);
    return text;
  }

 private:
  tcp::asio::io_context io_;
  tcp::Socket socket_;
};

TEST(TcpProof, DependsOnEverythingThatItProves) {
  const tcp::Nonce a = tcp::make_nonce(), b = tcp::make_nonce();
  EXPECT_NE(a, b);
  const std::array<std::byte, 2> words{};
  const auto prove = [&](const char* secret, const char* job, tcp::Role role, const tcp::Nonce& one,
                         const tcp::Nonce& other, std::size_t count) {
    return tcp::prove({secret, job}, role, one, other, std::span(words).first(count));
  };
  const std::vector<tcp::Proof> all{
      prove("s", "j", tcp::Role::kCaller, a, b, 1), prove("s", "j", tcp::Role::kListener, a, b, 1),
      prove("s", "j", tcp::Role::kCaller, b, a, 1), prove("s", "j", tcp::Role::kCaller, a, b, 2),
      prove("s", "k", tcp::Role::kCaller, a, b, 1), prove("t", "j", tcp::Role::kCaller, a, b, 1),
      prove("", "j", tcp::Role::kCaller, a, b, 1),  prove("", "", tcp::Role::kCaller, a, b, 1)};
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < all.size(); ++j) EXPECT_EQ(tcp::is_equal(all[i], all[j]), i == j);
  }
  EXPECT_EQ(all[0], prove("s", "j", tcp::Role::kCaller, a, b, 1));
}

TEST(TcpProof, RanksWithOneSecretMeetAndSplit) {
  TcpRanks<4>::run(
      [](Communicator& comm) {
        barrier(comm);
        barrier(*comm.split(comm.rank().value % 2, 0));
      },
      [](int rank, std::uint16_t port) {
        return of_job(tcp_options(rank, 4, port), "open sesame", "7");
      });
}

// Rank 0 and a rank with another secret, which wait this long, and the error that the latter gets.
void expect_strangers(std::chrono::milliseconds zero_waits, std::chrono::milliseconds one_waits,
                      const char* words) {
  const std::uint16_t port = free_port();
  auto zero = meet(of_job(soon(0, 2, port, zero_waits), "open sesame"));
  auto one = meet(of_job(soon(1, 2, port, one_waits), "open barley"));
  expect_late(one, Rank{1}, {Rank{0}}, {words});
  expect_late(zero, Rank{0}, {Rank{1}}, {"of another job or with another secret"});
}

TEST(TcpProof, RankWithAnotherSecretIsAStranger) {
  expect_strangers(500ms, 400ms, "with another secret, listens there");
}

TEST(TcpProof, ComplaintOutlivesItsListener) {
  expect_strangers(200ms, 600ms, "with another secret, listens there; at last: ");
}

TEST(TcpProof, TwoJobsOnOnePortStayApart) {
  const std::uint16_t port = free_port();
  auto other_one = meet(of_job(soon(1, 2, port, 400ms), "", "job 8"));
  auto zero = meet(of_job(tcp_options(0, 2, port), "", "job 7"));
  expect_late(other_one, Rank{1}, {Rank{0}}, {"a rank of another job"});
  auto one = meet(of_job(tcp_options(1, 2, port), "", "job 7"));
  EXPECT_EQ(zero.get()->size(), 2);
  EXPECT_EQ(one.get()->size(), 2);
}

TEST(TcpProof, StrangerReceivesNothing) {
  const std::uint16_t port = free_port();
  auto zero = meet(of_job(tcp_options(0, 2, port), "open sesame"));
  Caller caller(port);
  const tcp::Hello hello{.nonce = tcp::make_nonce()};
  caller.send(hello);
  const tcp::Challenge challenge = caller.challenge();
  // The listener's own proof is not valid as the caller's.
  tcp::Claim claim{.size = 2, .rank = 1, .proof = challenge.proof};
  caller.send(claim);
  EXPECT_EQ(caller.rest(), "");

  Caller old_version(port);
  old_version.send(tcp::Hello{.version = tcp::kVersion - 1, .nonce = tcp::make_nonce()});
  EXPECT_EQ(old_version.rest(), "");
  auto one = meet(of_job(tcp_options(1, 2, port), "open sesame"));
  EXPECT_EQ(zero.get()->size() + one.get()->size(), 4);
}

TEST(TcpProof, ProofCannotBeReplayed) {
  const tcp::Credentials credentials{"open sesame", ""};
  const std::uint16_t port = free_port();
  auto zero = meet(of_job(soon(0, 3, port, 1s), credentials.secret));
  const tcp::Hello hello{.nonce = tcp::make_nonce()};
  tcp::Claim claim{.size = 3, .rank = 1};
  {
    Caller rank_1(port);
    rank_1.send(hello);
    claim.proof = tcp::prove(credentials, tcp::Role::kCaller, hello.nonce, rank_1.challenge().nonce,
                             tcp::words_of(claim));
    rank_1.send(claim);
    std::this_thread::sleep_for(50ms);
  }
  Caller thief(port);
  thief.send(hello);
  thief.challenge();
  thief.send(claim);
  EXPECT_EQ(thief.rest(), "");
  expect_late(zero, Rank{0}, {Rank{1}, Rank{2}}, {"1 of another job or with another secret"});
}

TEST(TcpProof, SilentConnectionsDoNotEndAMeeting) {
  rlimit files{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
  const rlimit more{std::min<rlim_t>(2048, files.rlim_max), files.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &more), 0);
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 2, port));
  const SilentCrowd silent(port, 1024);
  auto one = meet(tcp_options(1, 2, port));
  EXPECT_EQ(zero.get()->size(), 2);
  EXPECT_EQ(one.get()->size(), 2);
  ::setrlimit(RLIMIT_NOFILE, &files);
}

/// Rank 0 is a process that may open few files.
TEST(TcpProof, ARankZeroWithoutDescriptorsMakesRoom) {
  const std::uint16_t port = free_port();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const rlimit few{40, 40};
    ::setrlimit(RLIMIT_NOFILE, &few);
    try {
      barrier(*make_tcp_communicator(tcp_options(0, 2, port)));
      ::_exit(0);
    } catch (const std::exception& error) {
      std::cerr << error.what() << std::endl;
      ::_exit(1);
    }
  }
  const SilentCrowd silent(port, 100);
  auto one = meet(tcp_options(1, 2, port));
  const std::unique_ptr<Communicator> comm = one.get();
  barrier(*comm);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(TcpProof, TextOfAnotherProcessIsPrintedSafely) {
  const std::uint16_t port = free_port();
  tcp::asio::io_context io;
  tcp::Reception rank_0(io, at(port), {}, 2);
  auto one = meet(tcp_options(1, 2, port));
  std::optional<tcp::Guest> guest = rank_0.next(tcp::Clock::now() + kTestDeadline);
  ASSERT_TRUE(guest);
  const std::string text = "\x1b[2Jcome in\n";
  const tcp::Answer answer{.say = tcp::Say::kRefused,
                           .bytes = static_cast<std::uint32_t>(text.size())};
  tcp::asio::write(guest->socket, tcp::asio::buffer(&answer, sizeof answer));
  tcp::asio::write(guest->socket, tcp::asio::buffer(text));
  expect_fails<RendezvousError>(one, {"rank 0 refuses: \\x1b[2Jcome in\\x0a"});
}

}  // namespace
}  // namespace kvmesh::test
