// The query gather over mapped memory, over ranks of any kind, which may share GPUs.
#pragma once

#include "comm/combine/gather/gather_way.hpp"
#include "tests/gpu/device_tensor.hpp"
#include "tests/gpu/peer_contract.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::test {

struct GatherSizes {
  Dtype dtype;
  std::int64_t tokens, heads, dim;
  std::int64_t gap = 0;  // after each row, in elements
};

/// One rank's tensors of a gather, on the host and on its GPU. The result is NaN at first.
class GatherTensors {
 public:
  GatherTensors(const GatherSizes& sizes, int rank, int ranks, int turn = 0)
      : sizes_(sizes), mine_(share_of(sizes.heads, rank, ranks)) {
    change(turn);
  }

  /// Other queries, and a result that is NaN again, at the same addresses.
  void change(int turn) {
    turn_ = turn;
    OwnedTensor share(sizes_.dtype, {sizes_.tokens, mine_.size(), sizes_.dim}, {.gap = sizes_.gap});
    for (std::int64_t t = 0; t < sizes_.tokens; ++t) {
      for (std::int64_t h = 0; h < mine_.size(); ++h) {
        for (std::int64_t d = 0; d < sizes_.dim; ++d) {
          share.set(query_at(t, mine_.begin + h, d), t, h, d);
        }
      }
    }
    put(share_, share);
    OwnedTensor all = nothing();
    put(all_, all);
  }
  QueryShares queries(const std::int32_t* planned_tokens = nullptr) const {
    return {.mine = share_->view(),
            .all = all_->view(),
            .tokens = sizes_.tokens,
            .planned_tokens = planned_tokens};
  }
  /// Expects the queries of the first tokens, and nothing written beside them. Waits.
  void expect_first(std::int64_t tokens) const {
    OwnedTensor all = nothing();
    all_->download(all.view().data);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t h = 0; h < sizes_.heads; ++h) {
        for (std::int64_t d = 0; d < sizes_.dim; ++d) {
          ASSERT_EQ(all.at(t, h, d), query_at(t, h, d)) << t << ", " << h << ", " << d;
        }
      }
    }
    EXPECT_EQ(all.written(), tokens * sizes_.heads * sizes_.dim);
  }

 private:
  OwnedTensor nothing() const {
    return OwnedTensor(sizes_.dtype, {sizes_.tokens, sizes_.heads, sizes_.dim},
                       {.gap = sizes_.gap});
  }
  static void put(std::optional<DeviceTensor>& there, OwnedTensor& host) {
    if (!there) there.emplace(host.view());
    const TensorView view = there->view();
    if (view.elements() > 0) copy_bytes(view.data, host.view().data, extent_bytes(view));
  }
  /// Up to 250, which all types hold.
  float query_at(std::int64_t token, std::int64_t head, std::int64_t d) const {
    return static_cast<float>((token * 31 + head * 7 + d + turn_ * 13) % 251);
  }

  GatherSizes sizes_;
  IndexRange mine_;
  int turn_ = 0;
  std::optional<DeviceTensor> share_, all_;
};

template <class Ranks>
class PeerGatherContract : public PeerContract<Ranks> {};
TYPED_TEST_SUITE_P(PeerGatherContract);

TYPED_TEST_P(PeerGatherContract, BringsAllHeadsInBothForms) {
  this->run([](PeerRank& rank) {
    const std::uint64_t seed = agreed_seed(rank.comm());
    SCOPED_TRACE(seed_trace(seed));
    std::mt19937_64 random(seed);
    const auto up_to = [&](std::uint64_t most) {
      return static_cast<std::int64_t>(1 + random() % most);
    };
    const auto words = make_peer_gather(rank.window(), RowForm::kWords);
    const auto lines = make_peer_gather(rank.window(), RowForm::kLines);
    constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};
    constexpr std::int64_t kDims[] = {7, 64, 128, 192, 576}, kGaps[] = {0, 1, 4};
    for (int i = 0; i < steps_or(60); ++i) {
      const GatherSizes sizes{.dtype = kDtypes[random() % 3],
                              .tokens = up_to(40),
                              .heads = up_to(12),
                              .dim = kDims[random() % 5],
                              .gap = kGaps[random() % 3]};
      SCOPED_TRACE(fmt::format("{} [{}, {}, {}], gap {}", name(sizes.dtype), sizes.tokens,
                               sizes.heads, sizes.dim, sizes.gap));
      for (GatherWay* way : {words.get(), lines.get()}) {
        const GatherTensors tensors(sizes, rank.me(), rank.comm().size(), i);
        barrier(rank.comm());
        way->run(tensors.queries(), rank.stream());
        rank.group().wait(rank.stream(), "test gather");
        barrier(rank.comm());
        tensors.expect_first(sizes.tokens);
      }
    }
  });
}

/// Gathers in both forms between combines, back to back, with ranks that are late in turn and
/// batches that change: all use the same slots.
TYPED_TEST_P(PeerGatherContract, AGraphFollowsTheBatchBetweenCombines) {
  this->run([](PeerRank& rank) {
    const int ranks = rank.comm().size();
    const auto words = make_peer_gather(rank.window(), RowForm::kWords);
    const auto lines = make_peer_gather(rank.window(), RowForm::kLines);
    const auto combine = make_peer_way(rank.window());
    CombineCase test = full_case(ranks, 12, 7, 128, Scatter::kHeads);
    const Result once = rank.combine(*combine, test);
    const DeviceCase rows(test, rank.me());
    const GatherSizes sizes{Dtype::kBFloat16, 12, 7, 128};
    GatherTensors first(sizes, rank.me(), ranks), second(sizes, rank.me(), ranks);
    const cuda::DeviceBuffer planned(sizeof(std::int32_t));
    {
      const Graph graph(rank.native(), [&] {
        words->run(first.queries(planned.as<std::int32_t>()), rank.stream());
        lines->run(second.queries(planned.as<std::int32_t>()), rank.stream());
        combine->run(rows.partial(), rows.output(), rank.stream());
      });
      int late = rank.me() % 2 == 0 ? 2 : 0;
      int turn = 0;
      for (const std::int32_t tokens : {12, 5, 0, 9, 1, 12}) {
        first.change(++turn);
        second.change(turn + 100);
        copy_bytes(planned.data(), &tokens, sizeof tokens);
        late = 2 - late;
        barrier(rank.comm());
        check(cudaLaunchHostFunc(rank.native(), sleep_ms, &late));
        graph.launch(rank.native());
        rank.group().wait(rank.stream(), "replay");
        barrier(rank.comm());
        SCOPED_TRACE(tokens);
        first.expect_first(tokens);
        second.expect_first(tokens);
        EXPECT_TRUE(same_bits(rows.result(), once));
      }
    }
    barrier(rank.comm());
  });
}

TYPED_TEST_P(PeerGatherContract, NamesARankThatDoesNotGather) {
  const auto body = [](PeerRank& rank) {
    const int ranks = rank.comm().size();
    const auto way = make_peer_gather(rank.window());
    const GatherTensors tensors({Dtype::kBFloat16, 8, 8, 128}, rank.me(), ranks);
    const auto run = [&] { way->run(tensors.queries(), rank.stream()); };
    run();
    rank.group().wait(rank.stream(), "test gather");
    barrier(rank.comm());
    const Rank last{ranks - 1};
    if (rank.me() != last.value) {
      way->set_layer(5);
      EXPECT_EQ(late_for(rank, run, "gather_queries (layer 5, run 1 of its plan, "),
                std::vector{last});
    }
    barrier(rank.comm());
  };
  this->run(body, true);
}

REGISTER_TYPED_TEST_SUITE_P(PeerGatherContract, BringsAllHeadsInBothForms,
                            AGraphFollowsTheBatchBetweenCombines, NamesARankThatDoesNotGather);

}  // namespace kvmesh::test
