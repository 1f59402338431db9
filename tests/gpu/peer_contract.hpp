// The peer combine over ranks of any kind, which may share GPUs, against float64.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "comm/combine/peer/peer_way.hpp"
#include "core/cuda/device_wait.hpp"
#include "kvmesh/device_group.hpp"
#include "tests/gpu/device_combine_run.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/steps.hpp"

namespace kvmesh::test {

constexpr std::size_t kTestWindow = std::size_t{32} << 20;
constexpr RowForm kForms[] = {RowForm::kWords, RowForm::kLines};

inline std::string form_name(RowForm form) { return form == RowForm::kWords ? "words" : "lines"; }

/// A rank with its GPU, its window, and a stream.
class PeerRank {
 public:
  explicit PeerRank(Communicator& comm)
      : comm_(comm),
        group_(std::shared_ptr<Communicator>(&comm, [](Communicator*) {}),
               {DeviceKind::kCuda, comm.rank().value % cuda_device_count()}, false, kTestWindow) {
    check(cudaSetDevice(group_.device().index));
    stream_.emplace();
  }
  bool has_window() const { return group_.peer_window() != nullptr; }
  const std::string& refusal() const { return group_.no_peer_window(); }
  PeerWindow& window() { return *group_.peer_window(); }
  DeviceGroup& group() { return group_; }
  Communicator& comm() { return comm_; }
  int me() const { return comm_.rank().value; }
  Stream stream() const { return stream_->view(); }
  cudaStream_t native() const { return stream_->get(); }

  /// Plans and runs once. No rank frees or allocates memory while another one's kernel may wait for
  /// it.
  Result combine(CombineWay& way, CombineCase& test, Dtype travels_as = Dtype::kFloat32,
                 Dtype dtype = Dtype::kFloat32, std::int64_t gap = 0) {
    const DeviceCase on_device(test, me(), dtype, gap);
    way.plan({test.tokens, test.heads, test.dim}, options(test, travels_as), stream());
    barrier(comm_);
    way.run(on_device.partial(), on_device.output(), stream());
    group_.wait(stream(), "test combine");
    barrier(comm_);
    return on_device.result();
  }
  static CombineOptions options(const CombineCase& test, Dtype travels_as) {
    CombineOptions options = options_of(test, CombineStrategy::kAuto);
    options.travels_as = travels_as;
    return options;
  }

 private:
  Communicator& comm_;
  DeviceGroup group_;
  std::optional<OwnStream> stream_;
};

/// The partials after rounding to the type in which they travel.
inline CombineCase rounded(CombineCase test, Dtype dtype) {
  for (HeldPartial& partial : test.partials) {
    for (float& value : partial.o_values) {
      if (dtype == Dtype::kFloat16) value = float16_to_float(float_to_float16(value));
      if (dtype == Dtype::kBFloat16) value = bfloat16_to_float(float_to_bfloat16(value));
    }
  }
  return test;
}

template <class Ranks>
class PeerContract : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no GPU";
  }
  /// Runs the body on every rank. Skips the test where the GPUs are not linked, and on one rank if
  /// it needs peers.
  void run(const std::function<void(PeerRank&)>& body, bool needs_peers = false) {
    std::string refused;
    Ranks::run([&](Communicator& comm) {
      PeerRank rank(comm);
      if (comm.size() == 1 && needs_peers) {
        refused = "one rank";
        return;
      }
      if (rank.has_window()) return body(rank);
      if (rank.me() == 0) refused = rank.refusal();
    });
    if (!refused.empty()) GTEST_SKIP() << refused;
  }
};
TYPED_TEST_SUITE_P(PeerContract);

TYPED_TEST_P(PeerContract, MatchesFloat64InBothForms) {
  this->run([](PeerRank& rank) {
    const std::uint64_t seed = agreed_seed(rank.comm());
    SCOPED_TRACE(seed_trace(seed));
    std::mt19937_64 random(seed);
    const auto words = make_peer_way(rank.window(), RowForm::kWords);
    const auto lines = make_peer_way(rank.window(), RowForm::kLines);
    for (int i = 0; i < steps_or(40); ++i) {
      CombineCase test = random_case(random, rank.comm().size());
      SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
      const Expected expected = expected_of(test, rank.me());
      const Result result = rank.combine(*words, test, Dtype::kFloat32, Dtype::kFloat32, i % 5);
      expect_close(result, expected, test.dim);
      EXPECT_TRUE(same_bits(rank.combine(*lines, test), result)) << "as lines";
    }
  });
}

TYPED_TEST_P(PeerContract, RoundsPartialsOnceToTheTravelType) {
  this->run([](PeerRank& rank) {
    for (RowForm form : kForms) {
      const auto way = make_peer_way(rank.window(), form);
      for (std::int64_t dim : {7, 64, 128, 192, 512, 576}) {
        CombineCase test = full_case(rank.comm().size(), 3, 5, dim, Scatter::kHeads);
        SCOPED_TRACE(form_name(form) + ", " + test.describe());
        for (Dtype dtype : {Dtype::kFloat16, Dtype::kBFloat16}) {
          CombineCase before = rounded(test, dtype);
          const Result expected = rank.combine(*way, before);
          expect_close(expected, expected_of(before, rank.me()), dim);
          EXPECT_TRUE(same_bits(rank.combine(*way, test, dtype), expected)) << name(dtype);
        }
      }
    }
  });
}

TYPED_TEST_P(PeerContract, RoundsTheOutputOnce) {
  this->run([](PeerRank& rank) {
    const auto way = make_peer_way(rank.window());
    for (std::int64_t dim : {3, 64}) {
      CombineCase test = full_case(rank.comm().size(), 4, 6, dim, Scatter::kTokens);
      const Result exact = rank.combine(*way, test);
      for (Dtype dtype : {Dtype::kFloat16, Dtype::kBFloat16}) {
        for (std::int64_t gap : {0, 4}) {
          Result expected = exact;
          for (float& value : expected.o) {
            value = dtype == Dtype::kFloat16 ? float16_to_float(float_to_float16(value))
                                             : bfloat16_to_float(float_to_bfloat16(value));
          }
          EXPECT_TRUE(same_bits(rank.combine(*way, test, Dtype::kFloat32, dtype, gap), expected));
        }
      }
    }
  });
}

TYPED_TEST_P(PeerContract, NanRowIsNotEmpty) {
  this->run([](PeerRank& rank) {
    for (RowForm form : kForms) {
      const auto way = make_peer_way(rank.window(), form);
      for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
        CombineCase test = unusual_case(rank.comm().size(), scatter);
        SCOPED_TRACE(form_name(form) + ", " + test.describe());
        expect_close(rank.combine(*way, test), expected_of(test, rank.me()), test.dim);
      }
    }
  });
}

TYPED_TEST_P(PeerContract, MergesLargeProblems) {
  this->run([](PeerRank& rank) {
    const auto way = make_peer_way(rank.window());
    for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
      CombineCase test = full_case(rank.comm().size(), 130, 16, 128, scatter);
      SCOPED_TRACE(test.describe());
      expect_close(rank.combine(*way, test), expected_of(test, rank.me()), test.dim);
    }
  });
}

inline void sleep_ms(void* ms) {
  std::this_thread::sleep_for(std::chrono::milliseconds(*static_cast<int*>(ms)));
}

/// Layers back to back, of two plans in turn, with ranks that are late in turn: a slot is never
/// written before it has been read.
TYPED_TEST_P(PeerContract, ReplaysLayersBackToBackOnSkewedRanks) {
  this->run([](PeerRank& rank) {
    constexpr int kLayers = 7;
    const int ranks = rank.comm().size();
    const auto few = make_peer_way(rank.window(), RowForm::kWords);
    const auto many = make_peer_way(rank.window(), RowForm::kLines);
    CombineCase small = full_case(ranks, 2, 8, 128, Scatter::kHeads);
    CombineCase large = full_case(ranks, 40, 8, 128, Scatter::kTokens);
    const Result small_once = rank.combine(*few, small);
    const Result large_once = rank.combine(*many, large);
    std::vector<std::unique_ptr<DeviceCase>> cases;
    for (int layer = 0; layer < kLayers; ++layer) {
      cases.push_back(std::make_unique<DeviceCase>(layer % 3 == 2 ? large : small, rank.me()));
    }
    {
      const Graph graph(rank.native(), [&] {
        for (int layer = 0; layer < kLayers; ++layer) {
          CombineWay& way = layer % 3 == 2 ? *many : *few;
          way.run(cases[layer]->partial(), cases[layer]->output(), rank.stream());
        }
      });
      barrier(rank.comm());
      std::vector<int> late(static_cast<std::size_t>(steps_or(30)));
      for (std::size_t turn = 0; turn < late.size(); ++turn) {
        late[turn] = (static_cast<int>(turn) + rank.me()) % 3 == 0 ? 2 : 0;
        check(cudaLaunchHostFunc(rank.native(), sleep_ms, &late[turn]));
        graph.launch(rank.native());
      }
      rank.group().wait(rank.stream(), "replay");
      barrier(rank.comm());
    }
    for (int layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(same_bits(cases[layer]->result(), layer % 3 == 2 ? large_once : small_once))
          << "layer " << layer;
    }
    barrier(rank.comm());
  });
}

/// A captured run sends and receives the rows of a later plan's mask.
TYPED_TEST_P(PeerContract, AGraphFollowsTheMask) {
  this->run([](PeerRank& rank) {
    const int ranks = rank.comm().size();
    CombineCase test = full_case(ranks, 12, 4, 64, Scatter::kHeads);
    const auto mask = [&](int shift) {
      test.participation.emplace(test.tokens, ranks);
      for (std::int64_t t = 0; t < test.tokens; ++t) {
        test.participation->add(t, Rank{static_cast<int>(t + shift) % ranks});
        if (t % 3 == shift % 3) {
          for (int r = 0; r < ranks; ++r) test.participation->add(t, Rank{r});
        }
      }
    };
    const auto way = make_peer_way(rank.window());
    const auto plan = [&] {
      way->plan({test.tokens, test.heads, test.dim}, PeerRank::options(test, Dtype::kFloat32),
                rank.stream());
    };
    mask(0);
    plan();
    const std::uint64_t generation = way->generation();
    DeviceCase on_device(test, rank.me());
    const Graph graph(rank.native(),
                      [&] { way->run(on_device.partial(), on_device.output(), rank.stream()); });
    for (int shift = 0; shift < 4; ++shift) {
      mask(shift);
      plan();
      EXPECT_EQ(way->generation(), generation);
      on_device.poison();
      barrier(rank.comm());
      graph.launch(rank.native());
      rank.group().wait(rank.stream(), "replay");
      barrier(rank.comm());
      expect_close(on_device.result(), expected_of(test, rank.me()), test.dim);
    }
    barrier(rank.comm());
  });
}

TYPED_TEST_P(PeerContract, SendsNothingForRowsThatTheirOwnerHolds) {
  this->run([](PeerRank& rank) {
    const int ranks = rank.comm().size();
    const auto way = make_peer_way(rank.window(), RowForm::kWords);
    CombineCase test = full_case(ranks, 9, 2, 64, Scatter::kTokens);
    test.participation.emplace(test.tokens, ranks);
    for (int r = 0; r < ranks; ++r) {
      const IndexRange share = share_of(test.tokens, r, ranks);
      for (std::int64_t t = share.begin; t < share.end; ++t) test.participation->add(t, Rank{r});
    }
    expect_close(rank.combine(*way, test), expected_of(test, rank.me()), test.dim);

    // The slots of both epochs: only this rank's own rows have arrived.
    const std::size_t source_bytes =
        static_cast<std::size_t>(block_of({9, 2, 64}, Scatter::kTokens, 0, ranks).rows()) * 32 * 16;
    const auto slot = static_cast<std::size_t>(rank.window().slot_bytes(RowForm::kWords));
    std::vector<std::uint32_t> words(2 * slot / sizeof(std::uint32_t));
    copy_bytes(
        words.data(),
        rank.window().view().windows[rank.me()] + rank.window().slots_offset(RowForm::kWords),
        2 * slot);
    bool has_mine = false;
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (words[i] == 0) continue;
      const std::size_t source = i * sizeof(std::uint32_t) % slot / source_bytes;
      ASSERT_EQ(source, static_cast<std::size_t>(rank.me())) << "at word " << i;
      has_mine = true;
    }
    EXPECT_EQ(has_mine, share_of(test.tokens, rank.me(), ranks).size() > 0);
    barrier(rank.comm());
  });
}

/// Runs alone, and expects an error within the deadline. Returns the ranks that it names.
inline std::vector<Rank> late_for(PeerRank& rank, const std::function<void()>& run,
                                  std::string_view operation) {
  using namespace std::chrono_literals;
  rank.comm().set_deadline(800ms);
  std::vector<Rank> late;
  const auto start = std::chrono::steady_clock::now();
  run();
  try {
    rank.group().wait(rank.stream(), "one token");
    ADD_FAILURE() << "nobody was missing";
  } catch (const Timeout& timeout) {
    EXPECT_EQ(timeout.waiter(), Rank{rank.me()});
    EXPECT_NE(timeout.operation().find(operation), std::string::npos) << timeout.operation();
    late = timeout.late();
  }
  const auto waited = std::chrono::steady_clock::now() - start;
  EXPECT_GE(waited, 600ms);
  EXPECT_LT(waited, 1200ms);
  EXPECT_THROW(run(), BrokenGroup);
  check(cudaStreamSynchronize(rank.native()), "the device works on");
  rank.comm().set_deadline(kTestDeadline);
  return late;
}

TYPED_TEST_P(PeerContract, NamesARankThatDoesNotCombine) {
  const auto body = [](PeerRank& rank) {
    const auto way = make_peer_way(rank.window());
    CombineCase test = full_case(rank.comm().size(), 8, 8, 128, Scatter::kHeads);
    rank.combine(*way, test);
    const DeviceCase on_device(test, rank.me());
    barrier(rank.comm());
    const Rank last{rank.comm().size() - 1};
    const auto run = [&] { way->run(on_device.partial(), on_device.output(), rank.stream()); };
    if (rank.me() != last.value) {
      way->set_layer(5);
      EXPECT_EQ(late_for(rank, run, "combine (layer 5, run 1 of its plan, "), std::vector{last});
    }
    barrier(rank.comm());
    // The rows of the others have arrived, so the late rank has its result; after that it is alone.
    if (rank.me() == last.value) {
      run();
      rank.group().wait(rank.stream(), "one token");
      expect_close(on_device.result(), on_device.expected(), test.dim);
      EXPECT_EQ(late_for(rank, run, "combine (run 2 of its plan, ").size(), 1u);
    }
    barrier(rank.comm());
  };
  this->run(body, true);
}

TYPED_TEST_P(PeerContract, RejectsInvalidArgumentsBeforeSending) {
  this->run([](PeerRank& rank) {
    const auto way = make_peer_way(rank.window());
    CombineCase test = full_case(rank.comm().size(), 4, 8, 16, Scatter::kAll);
    const DeviceCase on_device(test, rank.me());
    const Partial mine = on_device.partial();
    const auto refuses = [&](const Partial& partial) {
      EXPECT_THROW(way->check_run(partial, on_device.output()), InvalidArgument);
    };
    refuses(mine);  // no plan yet
    way->plan({4, 8, 16}, {}, rank.stream());
    refuses(test.partials[0].view());  // in host memory
    Partial other = mine;
    other.o.shape[0] = 5;
    refuses(other);
    EXPECT_THROW(way->plan({1 << 20, 64, 128}, {}, rank.stream()), InvalidArgument)
        << "larger than the window";
    EXPECT_THROW(way->plan({4, 8, 16}, {.strategy = CombineStrategy::kAllReduce}, rank.stream()),
                 InvalidArgument);
    barrier(rank.comm());
    way->run(mine, on_device.output(), rank.stream());  // the last plan is still good
    rank.group().wait(rank.stream(), "test combine");
    barrier(rank.comm());
    expect_close(on_device.result(), on_device.expected(), test.dim);
    barrier(rank.comm());
  });
}

REGISTER_TYPED_TEST_SUITE_P(PeerContract, MatchesFloat64InBothForms,
                            RoundsPartialsOnceToTheTravelType, RoundsTheOutputOnce,
                            NanRowIsNotEmpty, MergesLargeProblems,
                            ReplaysLayersBackToBackOnSkewedRanks, AGraphFollowsTheMask,
                            SendsNothingForRowsThatTheirOwnerHolds, NamesARankThatDoesNotCombine,
                            RejectsInvalidArgumentsBeforeSending);

}  // namespace kvmesh::test
