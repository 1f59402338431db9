#include "kvmesh/types.hpp"

#include <gtest/gtest.h>

#include <string>
#include <unordered_set>

#include "kvmesh/error.hpp"
#include "kvmesh/tensor.hpp"

namespace kvmesh {
namespace {

TEST(PageId, KeepsRankAndIndexApart) {
  for (std::int32_t rank : {0, 1, PageId::kMaxRanks - 1}) {
    for (std::int32_t index : {0, 1, PageId::kMaxPagesPerRank - 1}) {
      const PageId page(PageRank{rank}, index);
      EXPECT_EQ(page.rank(), PageRank{rank});
      EXPECT_EQ(page.index(), index);
      EXPECT_TRUE(page.valid());
    }
  }
  EXPECT_FALSE(PageId().valid());
  static_assert(sizeof(PageId) == 4);
}

TEST(Dtype, IsFoundByItsName) {
  for (Dtype dtype : kAllDtypes) {
    EXPECT_EQ(dtype_from(name(dtype)), dtype);
  }
  try {
    dtype_from("int4");
    FAIL() << "there is no int4";
  } catch (const InvalidArgument& error) {
    EXPECT_EQ(std::string(error.what()),
              "unknown dtype 'int4': it must be one of float32, float16, bfloat16, float8_e4m3");
  }
  EXPECT_THROW(dtype_from(""), InvalidArgument);
}

TEST(Dtype, AllAreListedOnceWithTheirSizes) {
  int number = 0;
  for (Dtype dtype : kAllDtypes) {
    EXPECT_EQ(static_cast<int>(dtype), number++);
    EXPECT_GT(info_of(dtype).bits, 0) << name(dtype);
  }
  EXPECT_EQ(size_bytes(Dtype::kFloat32), 4u);
  EXPECT_EQ(size_bytes(Dtype::kFloat16), 2u);
  EXPECT_EQ(size_bytes(Dtype::kBFloat16), 2u);
  EXPECT_EQ(size_bytes(Dtype::kFloat8E4M3), 1u);
  const auto past_the_end = static_cast<Dtype>(number);
  EXPECT_EQ(name(past_the_end), "unknown");
  EXPECT_EQ(size_bytes(past_the_end), 0u);
}

TEST(TensorView, StridesAreRowMajorUnlessGiven) {
  float data[24] = {};
  const TensorView view = tensor(data, {2, 3, 4});
  EXPECT_EQ(view.stride(0), 12);
  EXPECT_EQ(view.stride(1), 4);
  EXPECT_EQ(view.stride(2), 1);
  EXPECT_EQ(view.elements(), 24);
  const TensorView swapped(data, Dtype::kFloat32, {3, 2, 4}, {4, 12, 1});
  EXPECT_EQ(swapped.stride(1), 12);
  const ConstTensorView read = swapped;
  EXPECT_EQ(read.strides, swapped.strides);
  EXPECT_EQ(describe(view), "float32 [2, 3, 4]");
}

TEST(TensorView, SixteenBitElementsOfAnyType) {
  enum class Half : std::uint16_t {};  // as an engine has its own
  Half data[6];
  const std::uint16_t bits[6] = {};
  const TensorView view = tensor(data, Dtype::kFloat16, {2, 3});
  EXPECT_EQ(describe(view), "float16 [2, 3]");
  EXPECT_EQ(view.data, data);
  EXPECT_EQ(view.stride(0), 3);
  const ConstTensorView constant = tensor(bits, Dtype::kBFloat16, {6});
  EXPECT_EQ(describe(constant), "bfloat16 [6]");
  EXPECT_EQ(constant.data, bits);
  EXPECT_THROW(tensor(data, Dtype::kFloat32, {3}), InvalidArgument);
  EXPECT_THROW(tensor(data, Dtype::kFloat8E4M3, {12}), InvalidArgument);
}

TEST(Errors, ReportRequestAndSupply) {
  const OutOfPages pages(7, {1, 2});
  EXPECT_EQ(pages.free_pages(), 3);
  EXPECT_EQ(std::string(pages.what()), "out of pages: asked for 7, free 3 (per rank: 1, 2)");
  const Timeout late({2}, {Rank{0}, Rank{3}}, "combine", std::chrono::milliseconds(250));
  EXPECT_EQ(std::string(late.what()), "rank 2 waited 250 ms in combine for rank 0, 3");
}

TEST(SequenceId, HasThreeParts) {
  const SequenceId id(3, 5, 17);
  EXPECT_EQ(id.space(), 3);
  EXPECT_EQ(id.generation(), 5u);
  EXPECT_EQ(id.slot(), 17u);
  EXPECT_EQ(describe(id), "#17 (life 3, space 3)");
  const SequenceId most(0xFFFF, (1 << 24) - 1, (1 << 24) - 1);
  EXPECT_EQ(most.value, ~std::uint64_t{0});
  EXPECT_NE(std::string(UnknownSequence(id).what()).find("#17"), std::string::npos);
}

TEST(Ids, AreKeysOfHashTables) {
  const std::unordered_set<SequenceId> sequences{SequenceId(1, 1, 1), SequenceId(1, 1, 2)};
  EXPECT_TRUE(sequences.contains(SequenceId(1, 1, 2)));
  const std::unordered_set<PageId> pages{PageId(PageRank{0}, 1), PageId(PageRank{1}, 0)};
  EXPECT_TRUE(pages.contains(PageId(PageRank{1}, 0)));
  EXPECT_FALSE(pages.contains(PageId{}));
  const std::unordered_set<Rank> ranks{Rank{1}, Rank{2}};
  EXPECT_TRUE(ranks.contains(Rank{2}));
}

}  // namespace
}  // namespace kvmesh
