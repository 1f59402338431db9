// Copies on write of several ranks wait for no device: those within a rank are work of the stream,
// and for those of a full rank two ranks wait for their streams. Nor do evictions to tiers that are
// given a stream.
#include <gtest/gtest.h>

#include <vector>

#include "tests/runtime/cache/moves/side_moves.hpp"

namespace kvmesh::test {
namespace {

/// The waits of a rank's backends, and the pages that they have moved.
struct Waited {
  int device = 0, stream = 0;
  std::int64_t pages_on_stream = 0, pages_at_once = 0;
};

class CountingBackend final : public OtherBackend {
 public:
  CountingBackend(std::unique_ptr<Backend> real, Waited& waited)
      : OtherBackend(std::move(real)), waited_(waited) {}
  void wait_idle() override { ++waited_.device; }
  void wait(kvmesh::Stream) override { ++waited_.stream; }
  DeviceMoves device_moves(std::optional<kvmesh::Stream> on) override {
    return [this, on](const PageMoves& moves) {
      (on ? waited_.pages_on_stream : waited_.pages_at_once) += std::ssize(moves.moves);
      move_pages(moves);
    };
  }

 private:
  Waited& waited_;
};

/// The first rank has the page with two tokens that the first sequence and its fork share.
class CopyingRanks {
 public:
  CopyingRanks(Communicator& comm, bool maps)
      : moving_(
            comm,
            [this](std::unique_ptr<Backend> real) {
              return std::make_unique<CountingBackend>(std::move(real), waited_);
            },
            uneven()),
        plan_(moving_.cache().plan({})) {
    if (!maps) unmap(moving_);
  }

  KvCache& cache() { return moving_.cache(); }
  int rank() { return moving_.mesh().page_rank().value; }
  SequenceId fork() const { return moving_.sequences()[2]; }
  PageRank rank_of_last_page(SequenceId sequence) {
    return cache().allocator().pages(sequence).back().rank();
  }
  std::int64_t free_on_first() { return cache().allocator().free_pages(PageRank{0}); }

  /// Replans the batch, writes its tokens, drops them again and checks what is left. Returns what
  /// the plan has waited for.
  Waited replan(const std::vector<BatchEntry>& batch) {
    const std::vector<double> expected = moving_.contents();
    std::vector<std::int64_t> lengths;
    for (const BatchEntry& entry : batch) lengths.push_back(cache().length(entry.sequence));
    waited_ = {};
    cache().replan(plan_, batch);
    const Waited waited = waited_;
    overwrite(plan_.append_tokens());
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].sequence == fork()) fork_rank_ = rank_of_last_page(fork());
      cache().truncate(batch[i].sequence, lengths[i]);
    }
    EXPECT_EQ(moving_.contents(), expected) << "the parent has its tokens, and the fork the copies";
    moving_.check();
    return waited;
  }
  /// Makes the fork's last page writable. Returns what that has waited for.
  Waited make_writable(std::optional<kvmesh::Stream> stream) {
    const std::vector<double> expected = moving_.contents();
    const std::int64_t length = cache().length(fork());
    waited_ = {};
    cache().make_writable(fork(), length - 1, length, stream);
    const Waited waited = waited_;
    EXPECT_NE(cache().allocator().pages(fork()).back(),
              cache().allocator().pages(moving_.sequences()[0]).back());
    EXPECT_EQ(moving_.contents(), expected);
    moving_.check();
    return waited;
  }
  /// The rank of the fork's last page in the batch that was replanned last.
  PageRank fork_rank() const { return fork_rank_; }

 private:
  void overwrite(std::int64_t tokens) {
    const CacheOptions& o = cache().options();
    const std::vector<float> numbers(static_cast<std::size_t>(tokens * o.kv_heads * o.k_dim), 77);
    for (int layer = 0; layer < o.layers; ++layer)
      plan_.append(layer, tensor(numbers.data(), {tokens, o.kv_heads, o.k_dim}),
                   tensor(numbers.data(), {tokens, o.kv_heads, o.v_dim}));
  }

  Waited waited_;
  MovingCache moving_;
  StepPlan plan_;
  PageRank fork_rank_{-1};
};

TEST(CopiesOnWrite, AreWorkOfTheStreamOnTheRankOfTheirSource) {
  on_ranks([](Communicator& comm, bool maps) {
    CopyingRanks ranks(comm, maps);
    // The other sequence of the batch would have all pages that the first rank has left.
    const SequenceId other = ranks.cache().create();
    const Waited waited = ranks.replan({{other, ranks.free_on_first() * 4, 0}, {ranks.fork(), 1}});
    EXPECT_EQ(ranks.fork_rank(), PageRank{0});
    EXPECT_EQ(waited.device, 0);
    EXPECT_EQ(waited.stream, 0);
    EXPECT_EQ(waited.pages_at_once, 0);
    EXPECT_EQ(waited.pages_on_stream, ranks.rank() == 0 ? ranks.cache().groups() : 0);
  });
}

TEST(CopiesOnWrite, OfAFullRankLetTwoRanksWaitForTheirStreams) {
  on_ranks([](Communicator& comm, bool maps) {
    CopyingRanks ranks(comm, maps);
    KvCache& cache = ranks.cache();
    cache.reserve(cache.create(), ranks.free_on_first() * 4);
    ASSERT_EQ(ranks.free_on_first(), 0);
    const SequenceId other = cache.create();
    fill(cache, other, 2);
    const SequenceId near = cache.fork(other);  // shares a page of the second rank
    const Waited waited = ranks.replan({{near, 1}, {ranks.fork(), 1}});
    EXPECT_EQ(ranks.fork_rank(), PageRank{1});
    const int groups = cache.groups();
    EXPECT_EQ(waited.device, 0);
    EXPECT_EQ(waited.stream, ranks.rank() < 2 ? groups : 0);
    EXPECT_EQ(waited.pages_on_stream, ranks.rank() == 1 ? groups : 0) << "the other copy";
    const bool moves = ranks.rank() == 1 || (ranks.rank() == 0 && !maps);
    EXPECT_EQ(waited.pages_at_once, moves ? groups : 0);
  });
}

TEST(CopiesOnWrite, OfMakeWritableAreWorkOfItsStream) {
  on_ranks([](Communicator& comm, bool maps) {
    for (const bool has_stream : {true, false}) {
      CopyingRanks ranks(comm, maps);
      const Waited waited =
          ranks.make_writable(has_stream ? std::optional(kvmesh::Stream()) : std::nullopt);
      const int groups = ranks.cache().groups(), copies = ranks.rank() == 0 ? groups : 0;
      EXPECT_EQ(waited.device, has_stream ? 0 : groups);
      EXPECT_EQ(waited.stream, 0);
      EXPECT_EQ(waited.pages_on_stream, has_stream ? copies : 0);
      EXPECT_EQ(waited.pages_at_once, has_stream ? 0 : copies);
    }
  });
}

TEST(Evictions, ToTiersOfReserveWaitForNoDeviceButForItsStream) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    CacheOptions options = uneven();
    options.groups.clear();
    options.tiers.host_bytes = 1 << 20;
    Waited waited;
    MovingCache moving(
        comm,
        [&](std::unique_ptr<Backend> real) {
          return std::make_unique<CountingBackend>(std::move(real), waited);
        },
        options);
    KvCache& cache = moving.cache();
    const auto evict_all = [&](std::optional<kvmesh::Stream> after) {
      waited = {};
      const SequenceId all = cache.create();
      cache.reserve(all, cache.allocator().free_pages() * 4, after);
      cache.erase(all);
      return waited.device;
    };
    PrefixKey key = cache.make_prefix_key();
    key.append(std::vector<std::int32_t>(8, 5));
    EXPECT_EQ(evict_all(kvmesh::Stream()), 0);
    EXPECT_EQ(cache.match_prefix_now(key, kvmesh::Stream()).tokens, 8) << "the tiers have it";
    EXPECT_EQ(cache.tier_statistics().pages_back, 2);
    moving.check();
  });
}

}  // namespace
}  // namespace kvmesh::test
