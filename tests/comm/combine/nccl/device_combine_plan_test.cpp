// The layout of combines on GPUs, which is computed on the host: both ends of a message agree, and
// every row that takes part has a place of its own.
#include "comm/combine/nccl/device_combine_plan.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <set>

#include "kvmesh/device_group.hpp"
#include "tests/comm/combine/combine_case.hpp"

namespace kvmesh::test {
namespace {

struct Job {
  CombineCase test;
  std::vector<DeviceCombinePlan> plans;  // [rank]
};

Job random_job(std::mt19937_64& random, CombineStrategy strategy) {
  const int ranks = 1 + static_cast<int>(random() % 9);
  Job job{random_case(random, ranks), {}};
  while (strategy != CombineStrategy::kAllToAll && job.test.scatter == Scatter::kOwner) {
    job.test = random_case(random, ranks);  // which nothing reduces
  }
  const CombineOptions options{
      .scatter = job.test.scatter,
      .strategy = strategy,
      .participation = job.test.participation ? &*job.test.participation : nullptr};
  for (int r = 0; r < ranks; ++r) {
    job.plans.push_back(
        plan_device_combine({job.test.tokens, job.test.heads, job.test.dim}, options, r, ranks));
  }
  return job;
}

std::uint64_t seed() {
  const char* given = std::getenv("KVMESH_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
}

/// The token places that `from` uses towards `owner`, as the kernels read them.
std::vector<std::int64_t> places(const Job& job, int from, int owner) {
  const DeviceCombinePlan& plan = job.plans[static_cast<std::size_t>(from)];
  const IndexRange tokens = plan.block(owner).tokens;
  std::vector<std::int64_t> result;
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    if (!plan.owners.empty() && plan.owners[static_cast<std::size_t>(t)] != owner) continue;
    if (plan.token_places.empty()) {
      result.push_back(t - tokens.begin);
    } else if (const auto at = static_cast<std::size_t>(from * plan.shape.tokens + t);
               plan.token_places[at] >= 0) {
      result.push_back(plan.token_places[at]);
    }
  }
  return result;
}

/// Rows that ranks send to other hosts: each row counts once for each time.
std::int64_t rows_between_hosts(const CombineShape& shape, const HostLayout& hosts) {
  const int ranks = hosts.hosts * hosts.per_host;
  std::int64_t rows = 0;
  for (int r = 0; r < ranks; ++r) {
    const auto plan = plan_device_combine(shape, {.scatter = Scatter::kHeads}, r, ranks);
    for (int to = 0; to < ranks; ++to) {
      const bool leaves = to / hosts.per_host != r / hosts.per_host;
      if (leaves) rows += plan.sent[static_cast<std::size_t>(to)].rows;
    }
  }
  return rows;
}

/// The same if each host has merged its rows, and each of its places sends a share of the heads.
std::int64_t merged_rows_between_hosts(const CombineShape& shape, const HostLayout& hosts) {
  const CombineShape place{shape.tokens, shape.heads / hosts.per_host, shape.dim};
  std::int64_t rows = 0;
  for (int host = 0; host < hosts.hosts; ++host) {
    const auto plan = plan_device_combine(place, {.scatter = Scatter::kHeads}, host, hosts.hosts);
    for (int to = 0; to < hosts.hosts; ++to) {
      if (to != host) rows += plan.sent[static_cast<std::size_t>(to)].rows * hosts.per_host;
    }
  }
  return rows;
}

void check_message(const Job& job, int from, int owner) {
  const DeviceCombinePlan& sender = job.plans[static_cast<std::size_t>(from)];
  const DeviceCombinePlan& receiver = job.plans[static_cast<std::size_t>(owner)];
  const RowMessage sent = sender.sent[static_cast<std::size_t>(owner)];
  const RowMessage received = receiver.received[static_cast<std::size_t>(from)];
  EXPECT_EQ(sent.rows, received.rows) << from << " to " << owner;
  EXPECT_EQ(sent.offset % 4, 0);
  EXPECT_EQ(received.offset % 4, 0);
  EXPECT_GT(sender.row_floats, sender.shape.dim) << "no room for the LSE";
  EXPECT_EQ(sender.row_floats, receiver.row_floats);
  EXPECT_EQ(sender.row_floats % 4, 0);
  EXPECT_LE(sent.offset + sent.rows * sender.row_floats, sender.sent_floats);
  EXPECT_LE(received.offset + received.rows * receiver.row_floats, receiver.received_floats);

  const std::vector<std::int64_t> tokens = places(job, from, owner);
  EXPECT_EQ(sent.rows, static_cast<std::int64_t>(tokens.size()) * sender.block(owner).heads.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    EXPECT_EQ(tokens[i], static_cast<std::int64_t>(i)) << "places are dense and in order";
  }
}

TEST(DeviceCombinePlan, HostsThatMergeFirstSendEachRowOnce) {
  for (const HostLayout& hosts : {HostLayout{2, 2}, HostLayout{2, 8}, HostLayout{3, 4}}) {
    const CombineShape shape{5, 2 * hosts.hosts * hosts.per_host, 128};
    const std::int64_t merged = merged_rows_between_hosts(shape, hosts);
    EXPECT_EQ(merged, shape.rows() * (hosts.hosts - 1));
    EXPECT_EQ(rows_between_hosts(shape, hosts), merged * hosts.per_host);
  }
}

TEST(DeviceCombinePlan, BothEndsOfAMessageAgree) {
  const std::uint64_t number = seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(number));
  std::mt19937_64 random(number);
  for (int i = 0; i < 300; ++i) {
    const Job job = random_job(random, CombineStrategy::kAllToAll);
    SCOPED_TRACE(job.test.describe());
    const int ranks = static_cast<int>(job.plans.size());
    for (int from = 0; from < ranks; ++from) {
      for (int owner = 0; owner < ranks; ++owner) {
        if (from != owner) check_message(job, from, owner);
      }
      EXPECT_EQ(job.plans[static_cast<std::size_t>(from)].received[static_cast<std::size_t>(from)],
                RowMessage{});
    }
  }
}

/// Every row, also of this rank's own, lies in the messages where the tensor has it.
void expect_tensor(const DeviceCombinePlan& plan) {
  const std::vector<std::byte> table = device_table(plan);
  const RowPlaces places = row_places(plan, table.data());
  EXPECT_EQ(plan.sent_floats, plan.shape.rows() * plan.row_floats);
  for (int token = 0; token < places.tokens; ++token) {
    for (int head = 0; head < places.heads; ++head) {
      const auto [message, row] = places.place_to_send(token, head);
      EXPECT_LT(row, message.rows);
      EXPECT_EQ(message.offset + row * plan.row_floats,
                token * plan.token_stride() + head * plan.head_stride());
    }
  }
}

TEST(DeviceCombinePlan, MessagesAreATensorIfAllRanksTakePart) {
  for (const int ranks : {2, 3, 8, 20}) {  // some with no share
    for (const Scatter scatter : {Scatter::kAll, Scatter::kTokens, Scatter::kHeads}) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, to " + std::string(name(scatter)));
      const CombineShape shape{7, 6, 10};
      Participation mask(shape.tokens, ranks);
      CombineOptions options{
          .scatter = scatter, .strategy = CombineStrategy::kAllToAll, .participation = &mask};
      for (std::int64_t t = 0; t < shape.tokens; ++t) {
        for (int r = 0; r < ranks; ++r) {
          EXPECT_FALSE(plan_device_combine(shape, options, 1, ranks).is_tensor());
          mask.add(t, Rank{r});
        }
      }
      for (const bool has_mask : {false, true}) {
        options.participation = has_mask ? &mask : nullptr;
        const auto plan = plan_device_combine(shape, options, 1, ranks);
        ASSERT_TRUE(plan.is_tensor());
        expect_tensor(plan);
      }
      options.strategy = CombineStrategy::kReduceScatter;
      EXPECT_FALSE(plan_device_combine(shape, options, 1, ranks).is_tensor());
    }
  }
}

TEST(DeviceCombinePlan, MessagesToOwnersOfTokensAreNoTensor) {
  Participation mask(2, 2);
  for (const int t : {0, 1}) {
    for (const int r : {0, 1}) mask.add(t, Rank{r});
  }
  EXPECT_FALSE(
      plan_device_combine({2, 4, 8}, {.scatter = Scatter::kOwner, .participation = &mask}, 0, 2)
          .is_tensor());
}

/// The plans of all ranks for rows of any kind, and what their kernels see of them.
struct RowJob {
  RowJob(const CombineCase& test, std::int64_t row_floats) {
    const CombineOptions options{
        .scatter = test.scatter,
        .participation = test.participation ? &*test.participation : nullptr};
    const int ranks = static_cast<int>(test.partials.size());
    for (int r = 0; r < ranks; ++r) {
      plans.push_back(
          plan_device_rows({test.tokens, test.heads, test.dim}, options, row_floats, r, ranks));
      tables.push_back(device_table(plans.back()));
    }
    for (std::size_t r = 0; r < plans.size(); ++r) {
      places.push_back(row_places(plans[r], tables[r].data()));
    }
  }
  std::vector<DeviceCombinePlan> plans;        // [rank]
  std::vector<std::vector<std::byte>> tables;  // [rank]
  std::vector<RowPlaces> places;               // [rank]
};

bool has_row(const RowPlaces& places, int owner, int token, int head) {
  const int of_row = places.owner(token, head);
  return of_row < 0 || of_row == owner;
}

/// Every row that `from` has for `owner` is where the owner looks for it, alone.
void expect_rows_found(const RowJob& job, const CombineCase& test, int from, int owner) {
  const RowPlaces& sender = job.places[static_cast<std::size_t>(from)];
  const RowPlaces& receiver = job.places[static_cast<std::size_t>(owner)];
  const DeviceCombinePlan& plan = job.plans[static_cast<std::size_t>(from)];
  const RowMessage message = sender.message_to(owner);
  EXPECT_EQ(receiver.message_from(from).rows, from == owner ? 0 : message.rows);
  EXPECT_LE(message.offset + message.rows * plan.row_floats, plan.sent_floats);
  const RowPlaces::Block block = receiver.block(owner);
  std::set<int> rows;
  for (int token = block.tokens.begin; token < block.tokens.begin + block.tokens.size; ++token) {
    for (int head = block.heads.begin; head < block.heads.begin + block.heads.size; ++head) {
      if (!has_row(sender, owner, token, head)) continue;
      const auto [sent, row] = sender.place_to_send(token, head);
      EXPECT_EQ(row, receiver.row_in_message(block, from, token, head));
      const bool takes_part = !test.participation || test.participation->has(token, Rank{from});
      EXPECT_EQ(row >= 0, takes_part);
      if (!takes_part) continue;
      EXPECT_EQ(sent, message);
      EXPECT_TRUE(rows.insert(row).second) << "two rows in one place";
    }
  }
  EXPECT_EQ(std::ssize(rows), message.rows);
  EXPECT_EQ(rows.empty() ? -1 : *rows.rbegin(), message.rows - 1);
}

// Also more ranks than travel with a launch, whose messages are read from the table.
TEST(DeviceCombinePlan, OwnersFindEveryRow) {
  const std::uint64_t number = seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(number));
  std::mt19937_64 random(number);
  for (int i = 0; i < 200; ++i) {
    const int ranks = 1 + static_cast<int>(random() % 20);
    const CombineCase test = random_case(random, ranks);
    SCOPED_TRACE(test.describe());
    const RowJob job(test, 4 * (1 + i % 5));
    for (int from = 0; from < ranks; ++from) {
      for (int owner = 0; owner < ranks; ++owner) expect_rows_found(job, test, from, owner);
    }
  }
}

TEST(DeviceCombinePlan, BlocksToReduceHoldEveryShare) {
  const std::uint64_t number = seed();
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(number));
  std::mt19937_64 random(number);
  for (int i = 0; i < 300; ++i) {
    for (CombineStrategy strategy :
         {CombineStrategy::kReduceScatter, CombineStrategy::kAllReduce}) {
      const Job job = random_job(random, strategy);
      SCOPED_TRACE(job.test.describe());
      std::set<std::int64_t> sizes;
      for (const DeviceCombinePlan& plan : job.plans) {
        sizes.insert(plan.reduced_floats());
        EXPECT_EQ(plan.blocks, plan.scatter == Scatter::kAll ? 1 : plan.ranks);
        EXPECT_GE(plan.block_rows, plan.block(plan.rank).rows());
        EXPECT_EQ(
            plan.block_floats(),
            plan.block_rows * (plan.shape.dim + (strategy == CombineStrategy::kAllReduce ? 1 : 0)));
      }
      EXPECT_EQ(sizes.size(), 1u) << "NCCL wants equal counts";
    }
  }
}

TEST(DeviceCombinePlan, SendsNothingForRowsThatTheirOwnerHolds) {
  Participation mask(6, 3);
  for (std::int64_t t = 0; t < 6; ++t) mask.add(t, Rank{static_cast<int>(t / 2)});
  for (int r = 0; r < 3; ++r) {
    const auto plan = plan_device_combine({6, 4, 64},
                                          {.scatter = Scatter::kTokens,
                                           .strategy = CombineStrategy::kAllToAll,
                                           .participation = &mask},
                                          r, 3);
    EXPECT_EQ(plan.sent_floats, 0);
    EXPECT_EQ(plan.received_floats, 0);
  }
}

TEST(DeviceCombinePlan, AutoBecomesAStrategy) {
  for (Scatter scatter : {Scatter::kHeads, Scatter::kTokens, Scatter::kAll}) {
    const auto plan = plan_device_combine({64, 64, 128}, {.scatter = scatter}, 0, 4);
    EXPECT_NE(plan.strategy, CombineStrategy::kAuto);
  }
}

TEST(DeviceCombinePlan, RejectsInvalidArguments) {
  const Participation other_tokens(5, 2);
  const Participation other_ranks(4, 3);
  EXPECT_THROW(plan_device_combine({-1, 8, 64}, {}, 0, 2), InvalidArgument);
  EXPECT_THROW(plan_device_combine({4, 8, -1}, {}, 0, 2), InvalidArgument);
  EXPECT_THROW(plan_device_combine({std::int64_t{1} << 30, 8, 64}, {}, 0, 2), InvalidArgument);
  EXPECT_THROW(plan_device_combine({4, 8, 64}, {.participation = &other_tokens}, 0, 2),
               InvalidArgument);
  EXPECT_THROW(plan_device_combine({4, 8, 64}, {.participation = &other_ranks}, 0, 2),
               InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
