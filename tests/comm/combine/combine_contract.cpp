#include "tests/comm/combine/combine_contract.hpp"

#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <string>

#include "core/numbers/half.hpp"
#include "tests/comm/combine/combine_case.hpp"

namespace kvmesh::test {
namespace {

/// Calls body(way, test, me, i) for random cases, the i-th alike on all ranks.
template <class Place, class Body>
void with_random_cases(const Place& place, int count, const Body& body) {
  place.run([&](Communicator& comm) {
    const std::uint64_t seed = agreed_seed(comm);
    SCOPED_TRACE(seed_trace(seed));
    std::mt19937_64 random(seed);
    auto ways = place.make(comm);
    for (int i = 0; i < count; ++i) {
      CombineCase test = random_case(random, comm.size());
      SCOPED_TRACE("case " + std::to_string(i) + ": " + test.describe());
      body(*ways, test, comm.rank().value, i);
    }
  });
}

TEST_P(CombineContract, MatchesFloat64AndGivesTheSameBits) {
  with_random_cases(GetParam(), 120, [](CombineWay& way, CombineCase& test, int me, int i) {
    const Result result = run_case(way, test, me, CombineStrategy::kAllToAll);
    expect_close(result, expected_of(test, me), test.dim);
    for (CombineStrategy strategy :
         {CombineStrategy::kReduceScatter, CombineStrategy::kAuto, CombineStrategy::kAllToAll}) {
      const Result again = run_case(way, test, me, strategy, Dtype::kFloat32, i % 3);
      EXPECT_TRUE(same_bits(again, result)) << "by " << name(strategy);
    }
  });
}

TEST_P(CombineContract, ConvertsTheOutput) {
  with_random_cases(GetParam(), 30, [](CombineWay& way, CombineCase& test, int me, int i) {
    const Result exact = run_case(way, test, me, CombineStrategy::kAuto);
    for (Dtype dtype : {Dtype::kFloat16, Dtype::kBFloat16}) {
      Result rounded = exact;
      for (float& value : rounded.o) {
        value = dtype == Dtype::kFloat16 ? float16_to_float(float_to_float16(value))
                                         : bfloat16_to_float(float_to_bfloat16(value));
      }
      for (CombineStrategy strategy :
           {CombineStrategy::kReduceScatter, CombineStrategy::kAllToAll}) {
        const Result result = run_case(way, test, me, strategy, dtype, i % 2);
        EXPECT_TRUE(same_bits(result, rounded)) << name(dtype) << " by " << name(strategy);
      }
    }
  });
}

TEST_P(CombineContract, NanRowIsNotEmpty) {
  GetParam().run([](Communicator& comm) {
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    const int me = comm.rank().value;
    for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
      CombineCase test = unusual_case(comm.size(), scatter);
      SCOPED_TRACE(test.describe());
      for (CombineStrategy strategy :
           {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter}) {
        expect_close(run_case(way, test, me, strategy), expected_of(test, me), test.dim);
      }
    }
  });
}

TEST_P(CombineContract, MergesLargeProblems) {
  GetParam().run([](Communicator& comm) {
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    const int me = comm.rank().value;
    for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
      CombineCase test = full_case(comm.size(), 150, 5, 64, scatter);
      SCOPED_TRACE(test.describe());
      const Result result = run_case(way, test, me, CombineStrategy::kAllToAll);
      expect_close(result, expected_of(test, me), test.dim);
      EXPECT_TRUE(same_bits(run_case(way, test, me, CombineStrategy::kReduceScatter), result));
    }
  });
}

// O of large rows is sent from its own memory, and is copied first if it is in several pieces.
TEST_P(CombineContract, MergesLargeProblemsWithGaps) {
  GetParam().run([](Communicator& comm) {
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    const int me = comm.rank().value;
    for (Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
      CombineCase dense = full_case(comm.size(), 150, 5, 64, scatter), gappy = dense;
      for (HeldPartial& partial : gappy.partials) partial = with_gap(partial, 3);
      SCOPED_TRACE(gappy.describe());
      const Result expected = run_case(way, dense, me, CombineStrategy::kAllToAll);
      EXPECT_TRUE(same_bits(run_case(way, gappy, me, CombineStrategy::kAllToAll), expected));
      gappy.participation.emplace(150, comm.size());  // all of all, said in words
      for (int rank = 0; rank < comm.size(); ++rank) {
        for (std::int64_t t = 0; t < 150; ++t) gappy.participation->add(t, Rank{rank});
      }
      EXPECT_TRUE(same_bits(run_case(way, gappy, me, CombineStrategy::kAuto), expected));
    }
  });
}

TEST_P(CombineContract, OwnersThatHoldAllKeysSendNothing) {
  GetParam().run([](Communicator& comm) {
    CombineCase test = full_case(comm.size(), 9, 3, 16, Scatter::kOwner);
    test.participation.emplace(test.tokens, comm.size());
    for (std::int64_t t = 0; t < test.tokens; ++t) {
      test.participation->add(t, Rank{static_cast<int>(t * t) % comm.size()});
    }
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    const int me = comm.rank().value;
    const std::uint64_t before = comm.sent_bytes();
    const Result result = run_case(way, test, me, CombineStrategy::kAuto);
    EXPECT_EQ(comm.sent_bytes(), before);
    expect_close(result, expected_of(test, me), test.dim);
  });
}

TEST_P(CombineContract, OwnerNeedsMaskAndAllToAll) {
  GetParam().run([](Communicator& comm) {
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    CombineCase test = full_case(comm.size(), 2, 2, 4, Scatter::kOwner);
    std::vector<float> o(2 * 2 * 4);
    const Participation mask(2, comm.size());
    const auto combine = [&](CombineStrategy strategy, const Participation* participation) {
      combine_once(
          way, test.partials[0].view(),
          {.scatter = Scatter::kOwner, .strategy = strategy, .participation = participation},
          {.o = tensor(o.data(), {2, 2, 4})});
    };
    EXPECT_THROW(combine(CombineStrategy::kAuto, nullptr), InvalidArgument);
    EXPECT_THROW(combine(CombineStrategy::kReduceScatter, &mask), InvalidArgument);
  });
}

TEST_P(CombineContract, SendsLargeRowsToAllAtMostTwice) {
  GetParam().run([](Communicator& comm) {
    CombineCase test = full_case(comm.size(), 64 * comm.size(), 2, 64, Scatter::kAll);
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    const std::uint64_t before = comm.sent_bytes();
    run_case(way, test, comm.rank().value, CombineStrategy::kAuto);
    const std::uint64_t rows = static_cast<std::uint64_t>(test.tokens * test.heads);
    const auto peers = static_cast<std::uint64_t>(comm.size() - 1);
    if (comm.size() == 2) {  // once: as many bytes
      EXPECT_EQ(comm.sent_bytes() - before, rows * (64 + 1) * 4 + 16);
      return;
    }
    EXPECT_EQ(comm.sent_bytes() - before,
              2 * (rows * (64 + 1) * 4 / static_cast<std::uint64_t>(comm.size()) + 16) * peers)
        << "a digest of 16 bytes is behind the rows of each message";
  });
}

TEST_P(CombineContract, SendsNothingForRowsThatTheirOwnerHolds) {
  GetParam().run([](Communicator& comm) {
    const int ranks = comm.size();
    const int me = comm.rank().value;
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    for (CombineStrategy strategy : {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter}) {
      SCOPED_TRACE(name(strategy));
      CombineCase test = full_case(ranks, 11, 3, 16, Scatter::kTokens);
      test.participation.emplace(test.tokens, ranks);
      for (int r = 0; r < ranks; ++r) {
        const IndexRange share = share_of(test.tokens, r, ranks);
        for (std::int64_t t = share.begin; t < share.end; ++t) test.participation->add(t, Rank{r});
      }
      const std::uint64_t before = comm.sent_bytes();
      const Result result = run_case(way, test, me, strategy);
      EXPECT_EQ(comm.sent_bytes(), before);
      expect_close(result, expected_of(test, me), test.dim);

      // One token more, that the last rank holds and rank 0 owns: only its rows travel.
      if (ranks == 1) continue;
      test.participation.emplace(test.tokens, ranks);
      test.participation->add(0, Rank{ranks - 1});
      run_case(way, test, me, strategy);
      const bool sends = me == ranks - 1;
      const unsigned messages = strategy == CombineStrategy::kAllToAll ? 1 : 2;
      EXPECT_EQ(comm.sent_bytes() - before, sends ? 3u * (16 + 1) * 4 + messages * 16 : 0u);
    }
  });
}

TEST_P(CombineContract, GivesARowThatOneRankHoldsToAll) {
  GetParam().run([](Communicator& comm) {
    const int me = comm.rank().value;
    CombineCase test = full_case(comm.size(), 2, 9, 64, Scatter::kAll);
    test.participation.emplace(test.tokens, comm.size());
    for (std::int64_t t = 0; t < test.tokens; ++t) {
      test.participation->add(t, Rank{comm.size() - 1});
    }
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    for (CombineStrategy strategy : {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter}) {
      const Result result = run_case(way, test, me, strategy);
      expect_close(result, expected_of(test, me), test.dim);
    }
  });
}

TEST_P(CombineContract, Composes) {
  GetParam().run([](Communicator& comm) {
    // Merges within groups of two first, then among the groups, as in a cluster of nodes.
    const int me = comm.rank().value;
    CombineCase test = full_case(comm.size(), 6, 4, 32, Scatter::kAll);
    const std::unique_ptr<Communicator> node = comm.split(me / 2, me);
    const std::unique_ptr<Communicator> cluster = comm.split(me % 2, me);
    HeldPartial inner(test.tokens, test.heads, test.dim, 0);
    HeldPartial outer(test.tokens, test.heads, test.dim, 0);
    auto within = GetParam().make(*node);
    combine_once(*within, test.partials[static_cast<std::size_t>(me)].view(), {},
                 {inner.view().o, inner.view().lse});
    // With an odd count the last node has one member, so the second members reach fewer nodes.
    if (comm.size() % 2 != 0 && me % 2 != 0) return;
    auto among = GetParam().make(*cluster);
    combine_once(*among, inner.view(), {}, {outer.view().o, outer.view().lse});
    expect_close({outer.o_values, outer.lse_values}, expected_of(test, me), test.dim);
  });
}

TEST_P(CombineContract, RejectsInvalidArgumentsBeforeSending) {
  GetParam().run([](Communicator& comm) {
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    HeldPartial held(4, 8, 16, 0);
    HeldPartial out(4, 8, 16, 0);
    const Partial mine = held.view();
    const CombineOutput output{out.view().o, out.view().lse};
    const auto refuses = [&](const Partial& partial, const CombineOptions& options,
                             const CombineOutput& to) {
      EXPECT_THROW(combine_once(way, partial, options, to), InvalidArgument);
    };
    refuses({tensor(out.o_values.data(), {4, 128}), mine.lse}, {}, output);
    refuses({mine.o, tensor(held.lse_values.data(), {8, 4})}, {}, output);
    refuses({mine.o, tensor(static_cast<float*>(nullptr), {4, 8})}, {}, output);
    refuses({{held.o_values.data(), Dtype::kBFloat16, {4, 8, 16}}, mine.lse}, {}, output);
    refuses({{held.o_values.data(), Dtype::kFloat32, {4, 8, 16}, {128, 1, 8}}, mine.lse}, {},
            output);
    refuses({{held.o_values.data(), Dtype::kFloat32, {4, 8, 16}, Device{DeviceKind::kCuda, 0}},
             mine.lse},
            {}, output);
    refuses(mine, {.strategy = CombineStrategy::kAllReduce}, output);
    refuses(mine, {}, {tensor(out.o_values.data(), {4, 8, 15}), output.lse});
    refuses(mine, {}, {tensor(out.o_values.data(), {5, 8, 16}), output.lse});
    refuses(mine, {}, {output.o, tensor(out.lse_values.data(), {4, 7})});
    refuses(mine, {}, {TensorView{}, output.lse});
    const Participation other_tokens(5, comm.size());
    const Participation other_ranks(4, comm.size() + 1);
    refuses(mine, {.participation = &other_tokens}, output);
    refuses(mine, {.participation = &other_ranks}, output);
    if (comm.size() > 1) refuses(mine, {.scatter = Scatter::kHeads}, output);
    EXPECT_EQ(comm.sent_bytes(), 0u);
    for (float value : out.o_values) ASSERT_TRUE(std::isnan(value)) << "wrote before checking";

    CombineCase good = full_case(comm.size(), 4, 8, 16, Scatter::kAll);
    const int me = comm.rank().value;
    expect_close(run_case(way, good, me, CombineStrategy::kAuto), expected_of(good, me), 16);
  });
}

// The last rank plans something else: every rank that gets rows from it throws, and it throws too.
void expect_difference(CombineWay& way, Communicator& comm, const std::string& groups,
                       const std::function<void(CombineOptions&, PlanDigest&)>& change) {
  SCOPED_TRACE(groups);
  const int last = comm.size() - 1;
  CombineCase test = full_case(comm.size(), 4, 8, 16, Scatter::kAll);
  HeldPartial out(4, 8, 16, 0);
  CombineOptions options;
  PlanDigest digest;
  if (comm.rank().value == last) change(options, digest);
  way.identify(digest);
  way.plan({4, 8, 16}, options, {});
  std::string said;
  try {
    const auto me = static_cast<std::size_t>(comm.rank().value);
    way.run(test.partials[me].view(), {out.view().o, out.view().lse}, {});
  } catch (const DigestMismatch& error) {
    said = error.what();
  }
  const std::string ranks = comm.rank().value == last ? std::to_string(last) + " and 0"
                                                      : std::to_string(comm.rank().value) +
                                                            " and " + std::to_string(last);
  const std::string expected = "the plans of ranks " + ranks + " differ in: " + groups;
  if (comm.size() == 1) {
    EXPECT_EQ(said, "");
  } else {
    EXPECT_NE(said.find(expected), std::string::npos) << said;
  }
  barrier(comm);  // the communicator is still usable
}

TEST_P(CombineContract, NamesTheRankWhosePlanDiffers) {
  GetParam().run([](Communicator& comm) {
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    // Without a check these would move the same messages.
    expect_difference(way, comm, "strategy",
                      [](auto& o, auto&) { o.strategy = CombineStrategy::kAllToAll; });
    Participation all(4, comm.size());
    for (int t = 0; t < 4; ++t) {
      for (int r = 0; r < comm.size(); ++r) all.add(t, Rank{r});
    }
    expect_difference(way, comm, "lengths", [&](auto& o, auto&) { o.participation = &all; });
    if (dynamic_cast<CombinerAsWay*>(&way) != nullptr) return;  // has only its arguments
    expect_difference(way, comm, "mask", [](auto&, auto& d) { d.add(PlanGroup::kMask, 8); });
    expect_difference(way, comm, "scale", [](auto&, auto& d) { d.add(PlanGroup::kScale, 1); });
    expect_difference(way, comm, "lengths, scale", [](auto&, auto& d) {
      d.add(PlanGroup::kLengths, 1);
      d.add(PlanGroup::kScale, 1);
    });
  });
}

TEST_P(CombineContract, LseIsOptional) {
  GetParam().run([](Communicator& comm) {
    const int me = comm.rank().value;
    CombineCase test = full_case(comm.size(), 3, 4, 8, Scatter::kAll);
    auto ways = GetParam().make(comm);
    CombineWay& way = *ways;
    const Result with_lse = run_case(way, test, me, CombineStrategy::kAuto);
    HeldPartial out(3, 4, 8, 0);
    combine_once(way, test.partials[static_cast<std::size_t>(me)].view(), {}, {out.view().o, {}});
    EXPECT_EQ(out.o_values, with_lse.o);
  });
}

/// A plan is run many times, between runs of others, and does not read the caller's mask.
TEST_P(CombineContract, PlansCoexist) {
  GetParam().run([](Communicator& comm) {
    const auto me = static_cast<std::size_t>(comm.rank().value);
    auto ways = GetParam().make(comm);
    const std::unique_ptr<CombineWay> other = ways.make();
    CombineCase masked = full_case(comm.size(), 6, 3, 16, Scatter::kAll);
    masked.participation.emplace(masked.tokens, comm.size());
    for (std::int64_t t = 0; t < masked.tokens; ++t) {
      masked.participation->add(t, Rank{static_cast<int>(t) % comm.size()});
    }
    const Expected expected = expected_of(masked, comm.rank().value);
    (*ways).plan({masked.tokens, masked.heads, masked.dim},
                 {.participation = &*masked.participation}, {});
    masked.participation.emplace(masked.tokens, comm.size());  // no rank
    CombineCase second = full_case(comm.size(), 40, 8, 64, Scatter::kTokens);
    for (CombineStrategy strategy : {CombineStrategy::kAllToAll, CombineStrategy::kReduceScatter}) {
      HeldPartial out(masked.tokens, masked.heads, masked.dim, 0);
      (*ways).run(masked.partials[me].view(), {out.view().o, out.view().lse}, {});
      expect_close({out.o_values, out.lse_values}, expected, masked.dim);
      const Result result = run_case(*other, second, comm.rank().value, strategy);
      expect_close(result, expected_of(second, comm.rank().value), second.dim);
    }
  });
}

}  // namespace
}  // namespace kvmesh::test
