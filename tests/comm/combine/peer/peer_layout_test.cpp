#include "comm/combine/peer/peer_layout.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

constexpr PeerRoom kAmple{.word_slot_bytes = 64 << 20, .line_slot_bytes = 64 << 20};

CombineOptions options_of(Scatter scatter, Dtype travels_as) {
  return {.scatter = scatter, .travels_as = travels_as};
}

int cells(std::int64_t dim, Dtype travels_as, RowForm form) {
  return peer_layout({1, 1, dim}, options_of(Scatter::kAll, travels_as), 2, form).row_cells;
}

TEST(PeerLayout, CountsCells) {
  // 8 bytes a cell as words; 120 bytes in the eight cells of a line.
  EXPECT_EQ(cells(128, Dtype::kBFloat16, RowForm::kWords), 32);
  EXPECT_EQ(cells(128, Dtype::kBFloat16, RowForm::kLines), 3 * 8);
  EXPECT_EQ(cells(60, Dtype::kFloat16, RowForm::kLines), 8);
  EXPECT_EQ(cells(61, Dtype::kFloat16, RowForm::kLines), 2 * 8);
  EXPECT_EQ(cells(128, Dtype::kFloat32, RowForm::kWords), 64);
  EXPECT_EQ(cells(1, Dtype::kFloat32, RowForm::kWords), 1);
  EXPECT_EQ(cells(0, Dtype::kFloat32, RowForm::kWords), 1) << "the LSE travels";
}

TEST(PeerLayout, HasRoomForTheLargestShareOfEachSource) {
  const CombineShape shape{7, 9, 64};
  const auto rows = [&](Scatter scatter) {
    return peer_layout(shape, options_of(scatter, Dtype::kFloat32), 4, RowForm::kWords).block_rows;
  };
  EXPECT_EQ(rows(Scatter::kHeads), 7 * 3);
  EXPECT_EQ(rows(Scatter::kTokens), 2 * 9);
  EXPECT_EQ(rows(Scatter::kAll), 7 * 9);
}

TEST(PeerLayout, TakesLinesForManyRowsOnly) {
  const auto form = [](std::int64_t tokens, const PeerRoom& room) -> std::optional<RowForm> {
    const auto layout =
        fitting_layout({tokens, 2, 128}, options_of(Scatter::kHeads, Dtype::kBFloat16), 2, room);
    return layout ? std::optional(layout->form) : std::nullopt;
  };
  EXPECT_EQ(form(1023, kAmple), RowForm::kWords);  // below 512 KiB for an owner
  EXPECT_EQ(form(1024, kAmple), RowForm::kLines);
  EXPECT_EQ(form(1024, {.word_slot_bytes = 64 << 20}), RowForm::kWords);
  EXPECT_EQ(form(1, {.line_slot_bytes = 64 << 20}), RowForm::kLines);
  EXPECT_EQ(form(2, {.word_slot_bytes = 2 * 2 * 32 * 16}), RowForm::kWords);  // just fits
  EXPECT_EQ(form(3, {.word_slot_bytes = 2 * 2 * 32 * 16}), std::nullopt);
  EXPECT_EQ(form(1, {}), std::nullopt);
}

TEST(PeerLayout, RejectsTooManyCells) {
  const PeerRoom endless{.word_slot_bytes = std::size_t{1} << 62,
                         .line_slot_bytes = std::size_t{1} << 62};
  const CombineOptions options = options_of(Scatter::kAll, Dtype::kFloat32);
  EXPECT_TRUE(fitting_layout({1 << 20, 8, 128}, options, 2, endless));
  EXPECT_FALSE(fitting_layout({1 << 20, 64, 128}, options, 2, endless));
  EXPECT_FALSE(fitting_layout({std::int64_t{1} << 40, 1, 1}, options, 2, endless));
}

}  // namespace
}  // namespace kvmesh
