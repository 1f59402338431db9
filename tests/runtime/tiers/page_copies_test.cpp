// Copies of tiers: their batches, their order, and what is left when they fail.
#include "runtime/tiers/page_copies.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>

#include "runtime/tiers/file_tier.hpp"
#include "runtime/tiers/host_move_stream.hpp"
#include "runtime/tiers/host_tier.hpp"
#include "tests/runtime/tiers/synced_folders.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

constexpr int kPages = 12;
constexpr PageFormat kFormat{
    .heads = 2, .page_size = 4, .planes = {{"k", Dtype::kFloat32, 3}, {"v", Dtype::kFloat32, 2}}};

/// A move of the stream: which pages, and to where.
struct Call {
  bool packs;
  std::vector<std::int32_t> pages;
};

class Copies : public testing::Test {
 protected:
  Copies() {
    for (int layer = 0; layer < 2; ++layer) {
      for (const TensorView& plane : pools_.layer(layer)) {
        auto* const numbers = static_cast<float*>(plane.data);
        for (std::int64_t i = 0; i < plane.elements(); ++i) numbers[i] = next_ += 1;
      }
    }
    std::size_t bytes = copies_.page_bytes();
    images_.resize(kPages, std::vector<std::byte>(bytes));
  }
  /// The stream's moves; the thread's, so read it after a wait.
  void make(const PageMoves& moves) {
    if (fails_) throw Error("this copy fails");
    calls_.push_back({moves.packs, {}});
    for (const PageMove& move : moves.moves) calls_.back().pages.push_back(move.source);
    move_pages(moves);
  }
  std::byte* image(int i) { return images_[static_cast<std::size_t>(i)].data(); }
  std::vector<std::byte> page(int page) {
    std::vector<std::byte> bytes(copies_.page_bytes());
    copies_.wait(copies_.pack(page, bytes.data()));
    return bytes;
  }

  std::atomic<bool> fails_ = false;
  std::vector<Call> calls_;
  float next_ = 0;
  PoolStorage pools_{PoolLayout({{kFormat, kPages, {0, 1}}}, {}), {}};
  std::unique_ptr<Communicator> world_ = make_single_communicator();
  PageCopies copies_{
      pools_, std::make_unique<HostMoveStream>([this](const PageMoves& it) { make(it); }), *world_};
  std::vector<std::vector<std::byte>> images_;
};

TEST_F(Copies, AreOneCallPerBatch) {
  for (int i = 0; i < 5; ++i) copies_.pack(i, image(i));
  for (int i = 0; i < 5; ++i) copies_.unpack(image(i), 11 - i);
  copies_.wait_all();
  ASSERT_EQ(calls_.size(), 2u);
  EXPECT_TRUE(calls_[0].packs);
  EXPECT_EQ(calls_[0].pages, (std::vector<std::int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(calls_[1].pages, (std::vector<std::int32_t>{11, 10, 9, 8, 7}));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(page(i), page(11 - i));
}

// Copies of a batch run side by side.
TEST_F(Copies, CutABatchWhereAPageOrAnImageComesAgain) {
  const std::vector<std::byte> second = page(2);
  copies_.pack(1, image(0));
  copies_.pack(2, image(0));
  copies_.unpack(image(0), 7);
  copies_.unpack(image(1), 7);
  copies_.unpack(image(0), 7);
  copies_.wait_all();
  EXPECT_EQ(calls_.size(), 6u);
  EXPECT_EQ(page(7), second);
}

TEST_F(Copies, WorkRunsBetweenThem) {
  copies_.pack(1, image(0));
  std::vector<std::byte> seen;
  const TierJob job = copies_.then([&] {
    seen = images_[0];
    return true;
  });
  copies_.pack(2, image(0));
  EXPECT_TRUE(copies_.wait(job));
  EXPECT_EQ(seen, page(1));
  EXPECT_FALSE(copies_.wait(copies_.then([] { return false; })));
  EXPECT_FALSE(copies_.wait(copies_.then([]() -> bool { throw Error("broken"); })));
  EXPECT_THROW(copies_.wait_all(), Error);
  EXPECT_NO_THROW(copies_.wait_all());
}

TEST_F(Copies, AFailedOneIsTheErrorOfTheNextWait) {
  fails_ = true;
  const TierJob failed = copies_.pack(1, image(0));
  EXPECT_FALSE(copies_.wait(failed));
  fails_ = false;
  EXPECT_TRUE(copies_.wait(copies_.pack(2, image(1))));
  EXPECT_THROW(copies_.before({}), Error);
  EXPECT_NO_THROW(copies_.before({}));
  EXPECT_EQ(images_[1], page(2));
}

TEST_F(Copies, NoneFromAPageSucceedsAfterOneToAPageHasFailed) {
  fails_ = true;
  EXPECT_FALSE(copies_.wait(copies_.unpack(image(0), 1)));
  fails_ = false;
  EXPECT_FALSE(copies_.wait(copies_.pack(1, image(1))));
  EXPECT_THROW(copies_.before({}), Error);
  EXPECT_FALSE(copies_.wait(copies_.pack(1, image(1))));
  EXPECT_TRUE(copies_.wait(copies_.unpack(image(0), 1)));
}

TEST_F(Copies, NoneIsMadeAfterGivingUp) {
  const TierJob made = copies_.pack(1, image(0));
  copies_.give_up();
  const TierJob refused = copies_.pack(2, image(1));
  EXPECT_TRUE(copies_.wait(made));
  EXPECT_FALSE(copies_.wait(refused));
  EXPECT_EQ(images_[1], std::vector<std::byte>(copies_.page_bytes()));
}

/// Moves that are never done, as behind a step whose peer has died.
class StuckStream final : public MoveStream {
 public:
  void move(const PageMoves&) override {}
  void call(std::function<void(bool)> work, bool) override { kept_.push_back(std::move(work)); }
  void after(Stream) override {}
  void before(Stream) override {}
  bool is_done() override { return false; }

 private:
  std::vector<std::function<void(bool)>> kept_;
};

TEST_F(Copies, WaitsEndAtTheDeadline) {
  world_->set_deadline(std::chrono::milliseconds(50));
  PageCopies stuck(pools_, std::make_unique<StuckStream>(), *world_);
  const TierJob job = stuck.pack(1, image(0));
  EXPECT_THROW(stuck.wait(job), Timeout);
  EXPECT_THROW(stuck.wait_all(), Timeout);
  EXPECT_NO_THROW(stuck.before({})) << "it orders, and does not wait";
}

FileTier::Options options_in(const Folder& folder) {
  std::size_t row = 0;
  for (const PagePlane& plane : kFormat.planes) row += 4 * static_cast<std::size_t>(plane.elements);
  return {.folder = folder.path(),
          .shape = {.layers = 2,
                    .heads = 2,
                    .page_size = 4,
                    .planes = 2,
                    .row_bytes = static_cast<std::uint32_t>(row)},
          .format = kFormat,
          .sharers = {.bytes = 1 << 20}};
}

TEST_F(Copies, FilesOfFailedOnesAreNotWrittenAndTheirBuffersComeBack) {
  const Folder folder;
  FileCalls calls;
  FileTier tier(options_in(folder), calls, copies_);
  fails_ = true;
  for (int i = 0; i < 2 * FileTier::kBuffers; ++i) {
    PageHash hash{};
    hash.bytes[0] = static_cast<std::uint8_t>(i);
    static_cast<void>(tier.submit_store(hash, {.page = {PageRank{0}, 1}}));
    EXPECT_THROW(static_cast<void>(tier.wait_for_stores(std::chrono::seconds(10))), Error);
  }
  EXPECT_TRUE(folder.files().empty());
  fails_ = false;
  for (int i = 0; i < FileTier::kBuffers; ++i) {
    PageHash hash{};
    hash.bytes[0] = static_cast<std::uint8_t>(i);
    EXPECT_TRUE(copies_.wait(tier.submit_store(hash, {.page = {PageRank{0}, i % kPages}})));
  }
  EXPECT_TRUE(tier.wait_for_stores(std::chrono::seconds(10)));
  EXPECT_EQ(std::ssize(folder.files()), FileTier::kBuffers);
  EXPECT_EQ(tier.counts().drops, 0);
  PageHash third{};
  third.bytes[0] = 3;
  const std::vector<std::byte> content = page(3);
  EXPECT_TRUE(copies_.wait(tier.submit_load(third, {PageRank{0}, 9})));
  EXPECT_EQ(page(9), content);
  fails_ = true;
  EXPECT_FALSE(copies_.wait(tier.submit_load(third, {PageRank{0}, 8})));
  fails_ = false;
  EXPECT_THROW(static_cast<void>(tier.wait_for_stores(std::chrono::seconds(10))), Error);
}

TEST_F(Copies, ADurableTierHasItsFoldersOnTheDisk) {
  const Folder folder;
  FileTier::Options options = options_in(folder);
  const fs::path directory = folder.path(), model = directory / "model";
  options.folder = model / "layers-0-1";
  SyncedFolders calls;
  { const FileTier tier(options, calls, copies_); }
  EXPECT_TRUE(calls.take().empty());
  fs::remove_all(directory);
  options.way.durable = true;
  { const FileTier tier(options, calls, copies_); }
  EXPECT_TRUE(fs::exists(model / "layers-0-1" / "heads-0-1"));
  EXPECT_EQ(calls.take(), (std::vector<fs::path>{directory.parent_path(), directory, model,
                                                 model / "layers-0-1"}));
  { const FileTier tier(options, calls, copies_); }
  EXPECT_TRUE(calls.take().empty()) << "they are there";
}

// The checksum of such a file would be right.
TEST_F(Copies, AHostImageWhoseCopyFailedDoesNotGoToAFile) {
  const Folder folder;
  FileCalls calls;
  FileTier files(options_in(folder), calls, copies_);
  HostTier host({.pages_per_rank = 1}, copies_, &files);
  const auto store = [&](std::uint8_t number) {
    PageHash hash{};
    hash.bytes[0] = number;
    return host.submit_store(hash, {.page = {PageRank{0}, number}});
  };
  fails_ = true;
  EXPECT_FALSE(copies_.wait(store(1)));
  fails_ = false;
  EXPECT_THROW(copies_.wait_all(), Error);
  EXPECT_TRUE(copies_.wait(store(2)));  // 1 leaves
  EXPECT_TRUE(files.wait_for_stores(std::chrono::seconds(10)));
  EXPECT_TRUE(folder.files().empty());
  EXPECT_TRUE(copies_.wait(store(3)));  // 2 leaves
  EXPECT_TRUE(files.wait_for_stores(std::chrono::seconds(10)));
  EXPECT_EQ(folder.files().size(), 1u);
}

}  // namespace
}  // namespace kvmesh::test
