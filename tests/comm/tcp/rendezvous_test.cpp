// Meetings that fail, and strangers that connect.
#include <gtest/gtest.h>

#include "tests/comm/tcp/ranks.hpp"
#include "tests/comm/tcp/stranger.hpp"
#include "tests/support/killed_process.hpp"

namespace kvmesh::test {
namespace {

using namespace std::chrono_literals;

TEST(TcpRendezvous, WaitsForRankZeroToListen) {
  const std::uint16_t port = free_port();
  auto one = meet(tcp_options(1, 2, port));
  std::this_thread::sleep_for(150ms);
  auto zero = meet(tcp_options(0, 2, port));
  EXPECT_EQ(one.get()->rank(), Rank{1});
  EXPECT_EQ(zero.get()->size(), 2);
}

TEST(TcpRendezvous, ReportsThatNoRankListens) {
  auto one = meet(soon(1, 2, free_port(), 200ms));
  expect_late(one, Rank{1}, {Rank{0}}, {"refused", "127.0.0.1"});
}

TEST(TcpRendezvous, TakesTheLongestDeadline) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 2, port, std::chrono::milliseconds::max()));
  auto one = meet(soon(1, 2, port, std::chrono::milliseconds::max()));
  EXPECT_EQ(zero.get()->size(), 2);
  EXPECT_EQ(one.get()->size(), 2);
}

TEST(TcpRendezvous, NamesLateRanksOnEveryRank) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 4, port, 600ms));
  auto one = meet(soon(1, 4, port, 5s));
  auto three = meet(soon(3, 4, port, 5s));
  expect_late(zero, Rank{0}, {Rank{2}}, {"600 ms", "rendezvous"});
  expect_late(one, Rank{1}, {Rank{2}}, {"5000 ms"});
  expect_late(three, Rank{3}, {Rank{2}}, {"5000 ms"});
}

/// Ranks 1 and 3 give up shortly before rank 0, as ranks with its deadline do that start earlier.
TEST(TcpRendezvous, DoesNotNameRanksThatGaveUpJustBefore) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 4, port, 600ms));
  Stranger("").visit(port);  // rank 0's time runs
  auto one = meet(soon(1, 4, port, 545ms));
  auto three = meet(soon(3, 4, port, 550ms));
  expect_late(one, Rank{1}, {Rank{2}}, {});
  expect_late(three, Rank{3}, {Rank{2}}, {});
  expect_late(zero, Rank{0}, {Rank{2}}, {"600 ms"});
}

TEST(TcpRendezvous, NamesRanksThatGaveUpIfNoOthersAreMissing) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 3, port, 300ms));
  auto one = meet(soon(1, 3, port, 100ms));
  expect_late(one, Rank{1}, {Rank{2}}, {});
  auto two = meet(soon(2, 3, port, 5s));
  expect_late(zero, Rank{0}, {Rank{1}}, {});
  expect_late(two, Rank{2}, {Rank{1}}, {});
}

TEST(TcpRendezvous, RankWithTheFirstDeadlineNamesTheOthersToo) {
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 4, port));
  auto one = meet(soon(1, 4, port, 500ms));
  expect_late(one, Rank{1}, {Rank{2}, Rank{3}}, {"500 ms"});

  // The rank may come again; the others were only late.
  auto one_again = meet(tcp_options(1, 4, port));
  auto two = meet(tcp_options(2, 4, port));
  std::this_thread::sleep_for(100ms);
  auto three = meet(tcp_options(3, 4, port));
  for (auto* meeting : {&zero, &one_again, &two, &three}) EXPECT_EQ(meeting->get()->size(), 4);
}

TEST(TcpRendezvous, RejectsADuplicateRankAndContinues) {
  const std::uint16_t port = free_port();
  auto zero = meet(tcp_options(0, 3, port));
  auto one = meet(tcp_options(1, 3, port));
  std::this_thread::sleep_for(100ms);
  auto also_one = meet(tcp_options(1, 3, port));
  expect_fails<RendezvousError>(also_one, {"rank 1", "already"});
  auto two = meet(tcp_options(2, 3, port));
  for (auto* meeting : {&zero, &one, &two}) EXPECT_EQ(meeting->get()->size(), 3);
}

TEST(TcpRendezvous, RejectsASecondRankZero) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 2, port, 400ms));
  std::this_thread::sleep_for(100ms);
  auto also_zero = meet(soon(0, 2, port, 400ms));
  expect_fails<RendezvousError>(also_zero, {"cannot listen", "in use"});
  expect_late(zero, Rank{0}, {Rank{1}}, {});
}

TEST(TcpRendezvous, NamesRejectedRanks) {
  const std::uint16_t port = free_port();
  auto zero = meet(soon(0, 3, port, 500ms));
  auto two = meet(tcp_options(2, 4, port));
  expect_fails<RendezvousError>(two, {"rank 0 refuses", "rank 2 of 4 ranks", "a job of 3"});
  expect_late(zero, Rank{0}, {Rank{1}, Rank{2}}, {"1 refused as rank 2 of 4 ranks"});
}

TEST(TcpRendezvous, RejectsARankOfAnotherSizeInACrowd) {
  constexpr int kRanks = 16, kWrong = 3;
  const std::uint16_t port = free_port();
  std::vector<std::future<std::unique_ptr<Communicator>>> ranks;
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks.push_back(meet(tcp_options(rank, rank == kWrong ? kRanks + 1 : kRanks, port)));
  }
  expect_fails<RendezvousError>(ranks[kWrong], {"rank 3 of 17 ranks", "a job of 16"});
  ranks[kWrong] = meet(tcp_options(kWrong, kRanks, port));
  for (auto& rank : ranks) EXPECT_EQ(rank.get()->size(), kRanks);
}

/// Rank 0 is a process that is killed after rank 1 has registered with it.
TEST(TcpRendezvous, FindsARestartedRankZero) {
  const std::uint16_t port = free_port();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    make_tcp_communicator(tcp_options(0, 3, port));
    ::_exit(0);
  }
  KilledProcess first_zero(child);
  auto one = meet(tcp_options(1, 3, port));
  std::this_thread::sleep_for(200ms);
  first_zero.die();
  auto zero = meet(tcp_options(0, 3, port));
  auto two = meet(tcp_options(2, 3, port));
  for (auto* meeting : {&zero, &one, &two}) EXPECT_EQ(meeting->get()->size(), 3);
}

TEST(TcpRendezvous, ContinuesDespiteStrangers) {
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

TEST(TcpRendezvous, ReportsStrangersIfRanksAreMissing) {
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
  auto server = std::make_unique<Stranger>("SSH-2.0-OpenSSH_9.2\r\n");
  server->listen(port);
  auto patient = meet(tcp_options(1, 2, port));
  server->answer();
  auto one = meet(soon(1, 2, port, 300ms));
  std::jthread answers([&] {
    while (server->try_to_answer()) continue;
  });
  expect_late(one, Rank{1}, {Rank{0}}, {"another program listens there", std::to_string(port)});
  server->stop();
  answers.join();
  auto zero = meet(tcp_options(0, 2, port));
  EXPECT_EQ(zero.get()->size(), 2);
  EXPECT_EQ(patient.get()->size(), 2);
}

TEST(TcpRendezvous, NoticesAnotherVersionOnRankZerosPort) {
  const std::uint16_t port = free_port();
  tcp::Challenge challenge;
  challenge.version = tcp::kVersion + 1;
  Stranger server({reinterpret_cast<const char*>(&challenge), sizeof challenge});
  server.listen(port);
  auto one = meet(soon(1, 2, port, 300ms));
  std::jthread answers([&] {
    while (server.try_to_answer()) continue;
  });
  expect_late(one, Rank{1}, {Rank{0}}, {"another version of kvmesh", std::to_string(port)});
  server.stop();
}

TEST(TcpRendezvous, NoticesASilentProgramOnRankZerosPort) {
  const std::uint16_t port = free_port();
  Stranger server("");
  server.listen(port);
  auto one = meet(soon(1, 2, port, 200ms));
  server.answer();
  expect_late(one, Rank{1}, {Rank{0}}, {"says nothing"});
}

TEST(TcpRendezvous, RejectsInvalidOptions) {
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

TEST(TcpRendezvous, ReportsAnUnknownHost) {
  TcpOptions options = soon(1, 2, free_port(), 100ms);
  options.host = "nowhere.invalid";
  auto one = meet(options);
  expect_late(one, Rank{1}, {Rank{0}}, {"nowhere.invalid"});
}

}  // namespace
}  // namespace kvmesh::test
