// Planning on the device: page lists that change step by step, and block masks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/common/device_mods.hpp"
#include "kernels/cuda/plan/block_classes.hpp"
#include "kernels/cuda/plan/block_mask_builder.hpp"
#include "kernels/cuda/plan/page_lists.hpp"
#include "kvmesh/error.hpp"
#include "tests/gpu/gpu_support.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

std::vector<LocalPage> pages_on_device(const cuda::PageLists& lists, std::size_t list) {
  return download(lists.data() + lists.first_page(list), lists.size(list));
}

void send(cuda::PageLists& lists, cuda::Upload& upload, const Stream& stream) {
  lists.begin(stream);
  upload.begin(lists.upload_bytes());
  lists.add_to(upload);
  upload.send(stream);
  lists.apply(stream);
  lists.end(stream);
}

// A plan that failed after it had sent the changes.
void fail(cuda::PageLists& lists, cuda::Upload& upload, const Stream& stream,
          const std::vector<std::size_t>& changed) {
  lists.begin(stream);
  upload.begin(lists.upload_bytes());
  lists.add_to(upload);
  upload.send(stream);
  for (const std::size_t list : changed) lists.erase(list);
  lists.cancel(stream);
}

// Lists grow past their room, shrink and are erased; other lists take their room.
TEST(PageLists, FollowTheChanges) {
  const std::uint64_t seed = seed_or(std::random_device{}());
  SCOPED_TRACE(fmt::format("KVMESH_SEED={}", seed));
  Random random(seed);
  constexpr std::size_t kLists = 20;
  std::vector<std::vector<LocalPage>> model(kLists);
  cuda::PageLists lists;
  cuda::Upload upload;
  const Stream stream, other;
  for (int round = 0; round < 300; ++round) {
    std::vector<std::size_t> changed;
    for (std::size_t list = 0; list < kLists; ++list) {
      if (random.one_in(20)) {
        lists.erase(list);
        model[list].clear();
      }
      if (random.one_in(3)) continue;
      std::vector<LocalPage>& pages = model[list];
      if (random.one_in(5)) {
        pages.resize(static_cast<std::size_t>(random.integer(0, std::ssize(pages))));
      }
      const std::size_t keep = pages.size();
      const std::int64_t added = random.one_in(10) ? random.integer(0, 400) : random.integer(0, 2);
      for (std::int64_t i = 0; i < added; ++i) {
        pages.push_back({static_cast<std::int32_t>(random.integer(0, 1 << 20)),
                         static_cast<std::int32_t>(pages.size())});
      }
      lists.change(list, static_cast<std::int64_t>(keep), std::span(pages).subspan(keep));
      changed.push_back(list);
    }
    const Stream& on = random.coin() ? stream : other;
    if (random.one_in(5)) {
      fail(lists, upload, on, changed);
      for (const std::size_t list : changed) model[list].clear();
    } else {
      send(lists, upload, on);
    }
    check(cudaDeviceSynchronize());
    for (std::size_t list = 0; list < kLists; ++list) {
      ASSERT_EQ(lists.size(list), std::ssize(model[list]));
      ASSERT_EQ(pages_on_device(lists, list), model[list]) << "round " << round << " list " << list;
    }
  }
}

TEST(PageLists, SendChangesOnly) {
  cuda::PageLists lists;
  cuda::Upload upload;
  const Stream stream;
  const std::vector<LocalPage> many(10'000), one(1);
  lists.change(0, 0, many);
  send(lists, upload, stream);
  EXPECT_EQ(lists.upload_bytes(), 0u);
  lists.change(0, 10'000, one);
  EXPECT_LE(lists.upload_bytes(), 64u);
  EXPECT_THROW(lists.change(0, 10'002, one), InvalidArgument);
}

// Otherwise no plan would ever find the memory again.
TEST(PageLists, FreeTheRoomOfAFailedPlan) {
  cuda::PageLists lists;
  cuda::Upload upload;
  const Stream stream;
  const std::vector<LocalPage> many(1'000'000), one(1);
  for (std::size_t list = 0; list < 8; ++list) lists.change(list, 0, many);
  for (std::size_t list = 0; list < 8; ++list) lists.erase(list);
  lists.cancel(stream);
  lists.change(0, 0, one);
  send(lists, upload, stream);
  EXPECT_LE(lists.size_bytes(), 4096u);
  EXPECT_EQ(pages_on_device(lists, 0), one);
}

struct MaskCase {
  const char* name;
  MaskMod mask;
};

class BlockMaskOnDevice : public testing::TestWithParam<MaskCase> {};

TEST_P(BlockMaskOnDevice, EqualsTheHostResult) {
  const std::vector<BlockMaskShape> shapes{
      {.q_len = 300, .kv_len = 517, .q_block = 16, .kv_block = 16},
      {.batch = 3,
       .heads = 4,
       .q_len = 70,
       .kv_len = 200,
       .q_block = 33,
       .kv_block = 8,
       .q_start = {0, 130, 5}},
      {.batch = 2,
       .heads = 1,
       .q_len = 1,
       .kv_len = 1000,
       .q_block = 128,
       .kv_block = 1,
       .q_start = {999, 3}}};
  for (const BlockMaskShape& shape : shapes) {
    const BlockMask host = BlockMask::create(GetParam().mask, shape);
    const BlockMask device = cuda::make_block_mask(kernels(), GetParam().mask, shape);
    EXPECT_EQ(device.sparsity(), host.sparsity());
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        for (std::int64_t q = 0; q < shape.q_blocks(); ++q) {
          const BlockRowView a = host.row(b, h, q), d = device.row(b, h, q);
          ASSERT_TRUE(std::ranges::equal(a.partial, d.partial)) << b << ' ' << h << ' ' << q;
          ASSERT_TRUE(std::ranges::equal(a.full, d.full)) << b << ' ' << h << ' ' << q;
        }
      }
    }
  }
}

const Buffer<std::int32_t>& documents() {
  static const Buffer<std::int32_t> ids = [] {
    std::vector<std::int32_t> of_position;
    for (int i = 0; i < 1200; ++i) of_position.push_back(i * i / 20'000);
    return Buffer<std::int32_t>(of_position);
  }();
  return ids;
}

INSTANTIATE_TEST_SUITE_P(Masks, BlockMaskOnDevice,
                         testing::Values(MaskCase{"none", mods::no_mask()},
                                         MaskCase{"causal", mods::causal()},
                                         MaskCase{"window", mods::sliding_window(40)},
                                         MaskCase{"prefix", mods::prefix_lm(25)},
                                         MaskCase{"documents", mods::documents(documents())},
                                         MaskCase{"per_head_and_row",
                                                  [](auto b, auto h, auto q, auto kv) {
                                                    return (q + h * 3 + b) / 7 != kv / 5;
                                                  }}),
                         [](const auto& param) { return param.param.name; });

TEST(BlockMaskOnDevice, RejectsInvalidArgumentsAsTheHost) {
  EXPECT_THROW(cuda::make_block_mask(kernels(), mods::causal(), {.q_len = 0, .kv_len = 5}),
               InvalidArgument);
}

TEST(DeviceMods, SendsChangedBuffers) {
  Buffer<std::int32_t> window({5, 6});
  const MaskMod mask([window](auto, auto h, auto q, auto kv) { return q - kv < window[h]; });
  cuda::DeviceMods mods(ScoreMod().graph(), mask.graph());
  const auto on_device = [&] {
    std::vector<std::int32_t> values(2);
    check(cudaMemcpy(values.data(), mods.buffers().views[0].data, 8, cudaMemcpyDeviceToHost));
    return values;
  };
  const Stream stream;
  mods.send(stream);
  stream.wait();
  EXPECT_EQ(on_device(), (std::vector<std::int32_t>{5, 6}));
  const void* before = mods.buffers().views[0].data;
  window.set(1, 9);
  mods.send(stream);
  stream.wait();
  EXPECT_EQ(mods.buffers().views[0].data, before) << "a captured graph reads the old place";
  EXPECT_EQ(on_device(), (std::vector<std::int32_t>{5, 9}));
}

// Spread out on the device, a mask's lists are its tiles.
TEST(BlockClasses, EqualTheTilesOfTheMask) {
  const BlockMaskShape shape{
      .batch = 2, .heads = 2, .q_len = 90, .kv_len = 130, .q_block = 20, .kv_block = 16};
  const BlockMask mask = BlockMask::create(
      [](auto b, auto h, auto q, auto kv) { return q + b * 16 >= kv && kv / 32 != h; }, shape);
  const cuda::BlockClasses classes(mask);
  const cuda::ClassTable& table = classes.table();
  std::vector<TileClass> tiles(
      static_cast<std::size_t>(2 * 2 * shape.q_blocks() * shape.kv_blocks()));
  check(cudaMemcpy(tiles.data(), table.classes, tiles.size(), cudaMemcpyDeviceToHost));
  std::vector<TileClass> expected(tiles.size(), TileClass::kEmpty);
  for (std::int64_t row = 0; row < 4 * shape.q_blocks(); ++row) {
    const std::int64_t q = row % shape.q_blocks(), head = row / shape.q_blocks();
    const BlockRowView blocks = mask.row(head / 2, head % 2, q);
    const auto at = [&](std::int32_t kv) {
      return static_cast<std::size_t>(row * shape.kv_blocks() + kv);
    };
    for (std::int32_t kv : blocks.partial) expected[at(kv)] = TileClass::kPartial;
    for (std::int32_t kv : blocks.full) expected[at(kv)] = TileClass::kFull;
  }
  EXPECT_EQ(tiles, expected);
}

}  // namespace
}  // namespace kvmesh::test
