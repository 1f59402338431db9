#include "tests/comm/communicator_contract.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <random>
#include <thread>

namespace kvmesh::test {
namespace {

/// Exchanges `sizes[from][to]` among all, in an order of its own on each rank; checks the received
/// bytes.
void exchange_and_check(Communicator& comm, const std::vector<std::vector<std::size_t>>& sizes,
                        int round, std::mt19937_64& order) {
  const int me = comm.rank().value;
  std::vector<Bytes> sent;
  std::vector<Bytes> received;
  for (int peer = 0; peer < comm.size(); ++peer) {
    sent.push_back(message(me, peer, round, sizes[me][peer]));
    received.emplace_back(sizes[peer][me] + 1, kPoison);  // one byte more, which must not change
  }
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (int peer = 0; peer < comm.size(); ++peer) {
    outgoing.push_back({Rank{peer}, sent[peer]});
    incoming.push_back({Rank{peer}, std::span(received[peer]).first(sizes[peer][me])});
  }
  std::shuffle(outgoing.begin(), outgoing.end(), order);
  std::shuffle(incoming.begin(), incoming.end(), order);
  comm.exchange(outgoing, incoming, "test exchange");
  for (int peer = 0; peer < comm.size(); ++peer) {
    Bytes expected = message(peer, me, round, sizes[peer][me]);
    expected.push_back(kPoison);
    EXPECT_EQ(received[peer], expected) << "round " << round << ": from " << peer << " to " << me;
  }
}

TEST_P(CommunicatorContract, RanksCountFromZero) {
  GetParam().run([](Communicator& comm) {
    const std::int32_t me = comm.rank().value;
    std::vector<std::int32_t> all(static_cast<std::size_t>(comm.size()), -1);
    all_gather(comm, std::as_bytes(std::span(&me, 1)), std::as_writable_bytes(std::span(all)));
    std::vector<std::int32_t> expected(all.size());
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(all, expected);
  });
}

TEST_P(CommunicatorContract, GathersAndBroadcastsValues) {
  GetParam().run([](Communicator& comm) {
    const std::int32_t me = comm.rank().value;
    const std::vector<std::int32_t> mine{me, -me};
    std::vector<std::int32_t> expected;
    for (std::int32_t r = 0; r < comm.size(); ++r) expected.insert(expected.end(), {r, -r});
    EXPECT_EQ(all_gather_values<std::int32_t>(comm, mine), expected);
    std::int32_t last = me;
    broadcast_value(comm, Rank{comm.size() - 1}, last);
    EXPECT_EQ(last, comm.size() - 1);
  });
}

TEST_P(CommunicatorContract, ExchangesRandomSizes) {
  GetParam().run([](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    std::mt19937_64 random(seed);  // the same on all ranks
    std::mt19937_64 order(seed + static_cast<std::uint64_t>(comm.rank().value));
    const auto ranks = static_cast<std::size_t>(comm.size());
    std::uint64_t expected_bytes = comm.sent_bytes();
    for (int round = 0; round < 60; ++round) {
      std::vector<std::vector<std::size_t>> sizes(ranks, std::vector<std::size_t>(ranks));
      for (std::size_t from = 0; from < ranks; ++from) {
        for (std::size_t to = 0; to < ranks; ++to) {
          const bool empty = random() % 3 == 0;
          sizes[from][to] = empty ? 0 : random() % (std::size_t{1} << random() % 16) + 1;
          if (from != to && from == static_cast<std::size_t>(comm.rank().value)) {
            expected_bytes += sizes[from][to];
          }
        }
      }
      exchange_and_check(comm, sizes, round, order);
    }
    EXPECT_EQ(comm.sent_bytes(), expected_bytes);
  });
}

TEST_P(CommunicatorContract, KeepsTheOrderOfCalls) {
  GetParam().run([](Communicator& comm) {
    const Rank next{(comm.rank().value + 1) % comm.size()};
    const Rank previous{(comm.rank().value + comm.size() - 1) % comm.size()};
    for (int call = 0; call < 300; ++call) {
      const int sent = call * 100 + comm.rank().value;
      int received = -1;
      const Outgoing out{next, std::as_bytes(std::span(&sent, 1))};
      const Incoming in{previous, std::as_writable_bytes(std::span(&received, 1))};
      comm.exchange(std::span(&out, 1), std::span(&in, 1), "ring");
      ASSERT_EQ(received, call * 100 + previous.value);
    }
  });
}

TEST_P(CommunicatorContract, ExchangesLargeMessages) {
  GetParam().run([](Communicator& comm) {
    constexpr std::size_t kWords = std::size_t{2} << 20;  // 16 MB
    const std::int32_t me = comm.rank().value;
    const Rank next{(me + 1) % comm.size()};
    const Rank previous{(me + comm.size() - 1) % comm.size()};
    const auto words_of = [](Rank rank) {
      std::vector<std::uint64_t> words(kWords);
      std::iota(words.begin(), words.end(), static_cast<std::uint64_t>(rank.value) << 32);
      return words;
    };
    const std::vector<std::uint64_t> sent = words_of(comm.rank());
    std::vector<std::uint64_t> received(kWords);
    const Outgoing out{next, std::as_bytes(std::span(sent))};
    const Incoming in{previous, std::as_writable_bytes(std::span(received))};
    comm.exchange(std::span(&out, 1), std::span(&in, 1), "large");
    EXPECT_TRUE(received == words_of(previous));
  });
}

TEST_P(CommunicatorContract, RejectsBadEntriesAndStaysUsable) {
  GetParam().run([](Communicator& comm) {
    const std::uint64_t before = comm.sent_bytes();
    std::array<std::byte, 4> bytes{};
    const auto send = [&](std::vector<Outgoing> outgoing, std::vector<Incoming> incoming) {
      comm.exchange(outgoing, incoming, "bad entries");
    };
    EXPECT_THROW(send({{Rank{comm.size()}, bytes}}, {}), InvalidArgument);
    EXPECT_THROW(send({}, {{Rank{-1}, bytes}}), InvalidArgument);
    EXPECT_THROW(send({{Rank{0}, bytes}, {Rank{0}, bytes}}, {}), InvalidArgument);
    EXPECT_THROW(send({}, {{Rank{0}, bytes}, {Rank{0}, bytes}}), InvalidArgument);
    EXPECT_THROW(send({{comm.rank(), bytes}}, {}), InvalidArgument);
    EXPECT_THROW(comm.split(-1, 0), InvalidArgument);
    EXPECT_EQ(comm.sent_bytes(), before);
    barrier(comm);
  });
}

TEST_P(CommunicatorContract, RejectsDifferentLengths) {
  constexpr std::size_t kLarge = std::size_t{1} << 20;
  for (const auto& [sent, expected] : {std::pair<std::size_t, std::size_t>{10, 8},
                                       {10, 12},
                                       {kLarge, kLarge / 2 + 1},
                                       {kLarge / 2 + 1, kLarge}}) {
    GetParam().run([sent = sent, expected = expected](Communicator& comm) {
      if (comm.size() < 2 || comm.rank().value > 1) return;
      // The receiver gets the error as soon as the sender has begun; the sender may get none.
      const bool sends = comm.rank().value == 0;
      comm.set_deadline(sends ? std::chrono::milliseconds(200) : std::chrono::seconds(20));
      Bytes bytes(sends ? sent : expected);
      if (sends) {
        const Outgoing out{Rank{1}, bytes};
        // The sender may or may not get the error: its bytes may be in flight.
        try {
          comm.exchange(std::span(&out, 1), {}, "uneven");
        } catch (const Error& error) {
          expect_says(error, {"uneven"});
        }
        return;
      }
      const Incoming in{Rank{0}, bytes};
      try {
        comm.exchange({}, std::span(&in, 1), "uneven");
        ADD_FAILURE() << "expected " << expected << " bytes, " << sent << " were sent";
      } catch (const Error& error) {
        expect_says(error, {"uneven", "rank 1", "from rank 0"});
      }
    });
  }
}

TEST_P(CommunicatorContract, NamesTheLatePeer) {
  GetParam().run([](Communicator& comm) {
    if (comm.size() < 2) return;
    const Rank last{comm.size() - 1};
    barrier(comm);
    if (comm.rank() == last) return;
    comm.set_deadline(std::chrono::milliseconds(400));
    try {
      barrier(comm, "meeting");
      FAIL() << "the last rank never came, and nobody noticed";
    } catch (const Timeout& timeout) {
      EXPECT_EQ(timeout.waiter(), comm.rank());
      EXPECT_EQ(timeout.late(), std::vector{last});
      EXPECT_EQ(timeout.operation(), "meeting");
    }
    EXPECT_THROW(barrier(comm), BrokenGroup) << "a broken communicator was used again";
  });
}

TEST_P(CommunicatorContract, SplitsByColorAndKey) {
  GetParam().run([](Communicator& comm) {
    const int me = comm.rank().value;
    comm.set_deadline(std::chrono::milliseconds(12345));
    const std::unique_ptr<Communicator> part = comm.split(me % 2, -me);
    const int members = comm.size() / 2 + (me % 2 == 0 ? comm.size() % 2 : 0);
    ASSERT_EQ(part->size(), members);
    EXPECT_EQ(part->rank().value, members - 1 - me / 2);  // the keys turn the order round
    EXPECT_EQ(part->kind(), comm.kind());
    EXPECT_EQ(part->deadline(), comm.deadline());

    const std::vector<int> all = all_gather_value(*part, me);
    ASSERT_EQ(std::ssize(all), members);
    for (int r = 0; r < members; ++r) {
      EXPECT_EQ(all[static_cast<std::size_t>(r)], 2 * (members - 1 - r) + me % 2);
    }
    barrier(comm);
  });
}

TEST_P(CommunicatorContract, SplitsRepeatedly) {
  GetParam().run([](Communicator& comm) {
    std::unique_ptr<Communicator> part = comm.split(0, 0);
    for (int i = 0; i < 20; ++i) {
      part = part->split(7, part->rank().value);
      const std::unique_ptr<Communicator> alone = comm.split(comm.rank().value, i);
      EXPECT_EQ(alone->size(), 1);
      barrier(*alone);
      barrier(*part);
    }
    EXPECT_EQ(part->rank(), comm.rank());
    EXPECT_EQ(part->size(), comm.size());
  });
}

TEST_P(CommunicatorContract, BarrierWaitsForAll) {
  GetParam().run([](Communicator& comm) {
    using Clock = std::chrono::steady_clock;  // one clock for all processes of a host
    barrier(comm);
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * comm.rank().value));
    const std::int64_t came = Clock::now().time_since_epoch().count();
    barrier(comm);
    const std::int64_t left = Clock::now().time_since_epoch().count();
    const std::vector<std::int64_t> all = all_gather_value(comm, came);
    EXPECT_GE(left, *std::max_element(all.begin(), all.end()));
  });
}

TEST_P(CommunicatorContract, GathersUnevenCounts) {
  GetParam().run([](Communicator& comm) {
    const int me = comm.rank().value;
    std::vector<std::size_t> counts;
    Bytes expected;
    for (int r = 0; r < comm.size(); ++r) {
      counts.push_back(static_cast<std::size_t>(r % 3) * 50);  // every third gives nothing
      const Bytes part = message(r, 0, 0, counts.back());
      expected.insert(expected.end(), part.begin(), part.end());
    }
    const Bytes mine = message(me, 0, 0, counts[static_cast<std::size_t>(me)]);
    Bytes all(expected.size(), kPoison);
    all_gather_v(comm, mine, counts, all);
    EXPECT_EQ(all, expected);

    counts.pop_back();
    EXPECT_THROW(all_gather_v(comm, mine, counts, all), InvalidArgument);
    EXPECT_THROW(all_gather(comm, std::span(&kPoison, 1), {}), InvalidArgument);
  });
}

TEST_P(CommunicatorContract, BroadcastsFromEachRoot) {
  GetParam().run([](Communicator& comm) {
    for (int root = 0; root < comm.size(); ++root) {
      const Bytes expected = message(root, 0, root, 1000);
      Bytes bytes = comm.rank().value == root ? expected : Bytes(expected.size(), kPoison);
      broadcast(comm, Rank{root}, bytes);
      EXPECT_EQ(bytes, expected);
    }
    EXPECT_THROW(broadcast(comm, Rank{comm.size()}, {}), InvalidArgument);
  });
}

TEST_P(CommunicatorContract, SumsInRankOrder) {
  GetParam().run([](Communicator& comm) {
    // 1e16 swallows a single 1 and not two at once, so another order gives other bits.
    const auto value_of = [](int rank) {
      return rank % 3 == 0 ? 1e16 : rank % 3 == 1 ? 1.0 : -1e16;
    };
    double sum = value_of(0);
    double max = value_of(0);
    for (int r = 1; r < comm.size(); ++r) {
      sum += value_of(r);
      max = std::max(max, value_of(r));
    }
    const double mine = value_of(comm.rank().value);
    std::array<double, 2> sums{mine, 2 * mine};
    all_reduce_sum(comm, sums);
    EXPECT_EQ(sums, (std::array<double, 2>{sum, 2 * sum}));
    std::array<double, 2> maxima{mine, -static_cast<double>(comm.rank().value)};
    all_reduce_max(comm, maxima);
    EXPECT_EQ(maxima, (std::array<double, 2>{max, 0}));
  });
}

}  // namespace
}  // namespace kvmesh::test
