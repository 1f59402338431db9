// Copies between ranks, by messages, for whose moves on a device the host stops to wait: the tokens
// in host memory live until the moves are done.
#include "tests/runtime/cache/moves/page_transfer_contract.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "runtime/step/device_mover.hpp"
#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/cache/late_stream.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

/// Its moves are made when `release` is called. A wait before that ends at once, as at a deadline.
class HeldBackend final : public OtherBackend {
 public:
  using OtherBackend::OtherBackend;

  DeviceMoves device_moves(std::optional<Stream> on) override {
    return [this, on](const PageMoves& moves) {
      host_memory_.push_back(moves.packed_owner);
      mover_.move(moves, on);
    };
  }
  void after_late_moves(std::optional<Stream> on) override { mover_.after_late_moves(on); }

  /// Returns how many moves' host memory is alive.
  std::int64_t kept() const {
    return std::ranges::count_if(host_memory_, [](const auto& of) { return !of.expired(); });
  }
  void release() { stream_->stick(false); }

 private:
  std::unique_ptr<MoveStream> make_stream() {
    auto stream = std::make_unique<LateStream>();
    stream_ = stream.get();
    stream_->stick(true);
    return stream;
  }
  static void wait(const DeviceMover::IsDone& is_done) {
    for (int polls = 0; polls < 2; ++polls)  // the second makes moves that are released
      if (is_done()) return;
    throw Timeout(Rank{0}, {}, "move pages", std::chrono::milliseconds(0));
  }

  std::vector<std::weak_ptr<const void>> host_memory_;  // of the moves so far
  LateStream* stream_ = nullptr;
  DeviceMover mover_{[this] { return make_stream(); }, wait};
};

/// Pages of two ranks in the first of the formats, which map no pools of each other.
class TwoRanks {
 public:
  explicit TwoRanks(Communicator& comm)
      : mesh_(comm, {.threads = 1, .device = DeviceChoice::kCpu}),
        late_(make_backend(mesh_, allocator_)) {
    stamp_all(pools_, format_, rank());
  }

  int rank() const { return mesh_.kv_rank().value; }
  HeldBackend& late() { return late_; }
  /// Copies pages of rank 0 to rank 1; the moves of rank `late_rank` are held.
  void copy(int late_rank) {
    const std::unique_ptr<Backend> prompt = make_backend(mesh_, allocator_);
    Backend& backend = rank() == late_rank ? late_ : *prompt;
    transfer_pages(backend, pools_, peers_, mesh_.kv_comm(), Membership(2), copies_);
  }
  void expect_copied() const { test::expect_copied(pools_, format_, rank(), copies_); }

 private:
  Mesh mesh_;
  PageAllocator allocator_{{.ranks = 2, .pages_per_rank = 1}};
  HeldBackend late_;
  PageFormat format_ = TransferCase::formats()[0];
  PoolStorage pools_{PoolLayout({{format_, TransferCase::kPages, {0, 1}}}, mesh_.device()),
                     mesh_.device(), Sharing::kNode};
  PeerPools peers_{2};
  std::vector<PageCopy> copies_{{{PageRank{0}, 1}, {PageRank{1}, 25}, 4},
                                {{PageRank{0}, 3}, {PageRank{1}, 29}, 3}};
};

/// After these late moves the memory is given back, once someone has waited for them.
void end_late_moves(HeldBackend& late, std::int64_t moves) {
  EXPECT_EQ(late.kept(), moves);
  EXPECT_THROW(late.after_late_moves({}), Timeout);
  EXPECT_EQ(late.kept(), moves);
  late.release();
  late.after_late_moves({});
  EXPECT_EQ(late.kept(), 0);
}

TEST(LateTransfers, KeepReceivedTokensUntilTheyAreInThePages) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    TwoRanks ranks(comm);
    if (ranks.rank() == 0) return ranks.copy(1);
    EXPECT_THROW(ranks.copy(1), Timeout);
    end_late_moves(ranks.late(), 1);
    ranks.expect_copied();
  });
}

TEST(LateTransfers, KeepTheMemoryThatTokensToSendAreWrittenTo) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    TwoRanks ranks(comm);
    if (ranks.rank() == 1) return ranks.copy(0);
    EXPECT_THROW(ranks.copy(0), Timeout);
    end_late_moves(ranks.late(), 1);
  });
}

TEST(LateTransfers, KeepTheMemoryOfEachMove) {
  LoopbackRanks<2>::run([](Communicator& comm) {
    TwoRanks ranks(comm);
    for (int i = 0; i < 3; ++i) {
      if (ranks.rank() == 0) {
        ranks.copy(1);
      } else {
        EXPECT_THROW(ranks.copy(1), Timeout);
      }
    }
    if (ranks.rank() == 0) return;
    end_late_moves(ranks.late(), 3);
    ranks.expect_copied();
  });
}

}  // namespace
}  // namespace kvmesh::test
