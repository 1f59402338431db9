// The rows of several ranks of a reproducible cache, which one GPU computes rank by rank.
#include <fmt/format.h>

#include <limits>

#include "tests/gpu/exact_run.hpp"

namespace kvmesh::test {
namespace {

/// Which ranks have keys of which tokens.
Participation mask_of(const std::vector<AttentionBatch>& parts) {
  const AttentionBatch& all = parts.front();
  Participation mask(all.q_indptr.back(), static_cast<int>(parts.size()));
  for (int rank = 0; rank < static_cast<int>(parts.size()); ++rank) {
    const AttentionBatch& mine = parts[static_cast<std::size_t>(rank)];
    for (std::size_t s = 0; s < all.kv_lens.size(); ++s) {
      if (mine.page_indptr[s] == mine.page_indptr[s + 1]) continue;
      for (std::int64_t t = all.q_indptr[s]; t < all.q_indptr[s + 1]; ++t) mask.add(t, Rank{rank});
    }
  }
  return mask;
}

/// Merges and finishes the rows of one rank, and compares them with those that one rank has.
void expect_rows_of(const Messages& mine, AttentionCase& c, const CaseResult& want) {
  const AttentionShape& shape = c.spec().shape;
  const RowPlaces places = mine.places();
  const RowPlaces::Block own = places.block(places.rank);
  const std::int64_t n = own.tokens.size, h = own.heads.size;
  std::vector<float> o(static_cast<std::size_t>(n * h * shape.v_dim), NAN);
  std::vector<float> lse(static_cast<std::size_t>(n * h), NAN);
  const DeviceTensor device_o({o.data(), Dtype::kFloat32, {n, h, shape.v_dim}});
  const DeviceTensor device_lse({lse.data(), Dtype::kFloat32, {n, h}});
  const DeviceTensor sinks(c.sinks());
  const Stream stream;
  cuda::ExactRankMerge(kernels(), shape.v_dim)
      .launch({.places = places,
               .mine = mine.memory().send_buffer,
               .received = mine.memory().receive_buffer,
               .sinks = static_cast<const float*>(sinks.view().data),
               .out = cuda::attend_output({device_o.view(), device_lse.view()})},
              stream);
  stream.wait();
  device_o.download(o.data());
  device_lse.download(lse.data());
  for (std::int64_t row = 0; row < n * h; ++row) {
    const std::int64_t token = own.tokens.begin + row / h, head = own.heads.begin + row % h;
    const auto& owners = mine.plan().owners;
    if (!owners.empty() && owners[static_cast<std::size_t>(token)] != places.rank) continue;
    EXPECT_EQ(lse[static_cast<std::size_t>(row)], want.lse.at(token, head)) << token << " " << head;
    for (std::int64_t d = 0; d < shape.v_dim; ++d) {
      ASSERT_EQ(o[static_cast<std::size_t>(row * shape.v_dim + d)], want.o.at(token, head, d))
          << "token " << token << " head " << head;
    }
  }
}

// Also more ranks than heads and tokens, and than messages that travel with a launch.
TEST(AttendExact, RanksFinishTheirRowsToTheBitsOfOneRank) {
  Random random(seed_or(12));
  CaseSpec spec = three_sequences(16, Dtype::kBFloat16);
  spec.sinks = {0.5f, -2.0f, 3.0f, -std::numeric_limits<float>::infinity(), 0.0f, 9.0f};
  AttentionCase c(spec);
  const CaseResult want = finished_by_device(c);
  for (const int ranks : {2, 3, 8, 18}) {
    const std::vector<AttentionBatch> parts = dealt(c.batch(), ranks, random);
    const Participation mask = mask_of(parts);
    for (const Scatter scatter :
         {Scatter::kHeads, Scatter::kTokens, Scatter::kAll, Scatter::kOwner}) {
      for (const bool masked : {false, true}) {
        if (scatter == Scatter::kOwner && !masked) continue;
        SCOPED_TRACE(fmt::format("{} ranks, {}, {}", ranks, name(scatter), masked));
        std::vector<Messages> messages;
        for (int rank = 0; rank < ranks; ++rank) {
          messages.emplace_back(
              spec.shape, c.tokens(),
              CombineOptions{.scatter = scatter, .participation = masked ? &mask : nullptr}, rank,
              ranks);
          DeviceRun(c, parts[static_cast<std::size_t>(rank)], c.q()).leave_rows(messages.back());
        }
        for (const Messages& mine : messages) {
          for (const Messages& from : messages) {
            if (&from != &mine) mine.receive(from);
          }
          expect_rows_of(mine, c, want);
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
