// The tensor cores find in the shared image the elements that the copies wrote there. Their address
// of an element is computed here as the hardware does: linear, then exchanged by its own bits.
#include "kernels/cuda/attend/hopper/instructions/image.hpp"

#include <gtest/gtest.h>

#include <set>

#include "kernels/cuda/attend/hopper/gather_warps.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kRows = 64;
constexpr int kDims[] = {64, 96, 128, 160, 192, 224, 256};

/// An operand's description, as wgmma reads it.
struct Operand {
  explicit Operand(std::uint64_t description)
      : begin(static_cast<int>(description & 0x3FFF) * 16),
        leading(static_cast<int>(description >> 16 & 0x3FFF) * 16),
        stride(static_cast<int>(description >> 32 & 0x3FFF) * 16),
        row_bytes(description >> 62 == 1 ? 128 : 64) {}

  int exchanged(int address) const {
    const int units = row_bytes / 16;
    return address ^ ((address >> 7 & (units - 1)) << 4);
  }
  /// Returns where element `k` of row `row` lies, of rows that run along K.
  int along(int row, int k) const {
    return exchanged(begin + row / 8 * stride + row % 8 * row_bytes + k * 2);
  }
  /// Returns where column `column` of row `row` lies, of rows that run across K.
  int across(int row, int column) const {
    const int of_atom = row_bytes / 2;
    return exchanged(begin + column / of_atom * leading + row / 8 * stride + row % 8 * row_bytes +
                     column % of_atom * 2);
  }

  int begin, leading, stride, row_bytes;
};

/// The places of an element: two where atoms overlap.
std::set<int> places(const KvImage& image, int row, int dim) {
  std::set<int> found;
  for (int atom = 0; atom < image.atoms(); ++atom) {
    const int in_atom = dim - atom * image.atom_step();
    if (in_atom < 0 || in_atom >= image.atom_elements()) continue;
    found.insert(image.stored_unit(row, atom * image.atom_units() + in_atom / 8) + in_atom % 8 * 2);
  }
  return found;
}

TEST(KvImage, ProductsFindEachDimAlongRows) {
  for (const int dim : kDims) {
    const KvImage image{dim};
    for (int k = 0; k < dim; ++k) {
      const Operand operand(image.operand(0) +
                            static_cast<std::uint64_t>(image.further(k / 16 * 16)));
      for (int row = 0; row < kRows; ++row) {
        const int place = operand.along(row, k % 16);
        EXPECT_TRUE(places(image, row, k).contains(place)) << dim << ' ' << row << ' ' << k;
        EXPECT_EQ(place, image.unit(row, k / 8) + k % 8 * 2) << "queries have one place";
      }
    }
  }
}

TEST(KvImage, ProductsFindEachDimAcrossRowsInOnePart) {
  for (const int dim : kDims) {
    const KvImage image{dim};
    int column = 0;
    for (int part = 0; column < dim; ++part) {
      ASSERT_EQ(image.part_begin(part), column);
      ASSERT_EQ((image.part_end(part) - column) % 8, 0) << "columns of a product";
      for (; column < image.part_end(part); ++column) {
        for (int row = 0; row < kRows; ++row) {
          const Operand operand(image.operand(0) + static_cast<std::uint64_t>(image.further(
                                                       image.part_begin(part), row / 16 * 2)));
          EXPECT_TRUE(places(image, row, column)
                          .contains(operand.across(row % 16, column - image.part_begin(part))))
              << dim << ' ' << row << ' ' << column;
        }
      }
    }
    EXPECT_EQ(column, dim);
  }
}

// As decode_float8.cuh reads: from a lane's unit on, in steps of two for keys and of four for
// values.
TEST(KvImage, UnitsAfterAnotherAreFoundFromItsPlace) {
  for (const int dim : {64, 128, 192, 256, 512, 576}) {
    const KvImage image{dim, 1};
    for (int row = 0; row < 32; ++row) {
      for (const int step : {2, 4}) {
        for (int further = 0; further < dim / 16; further += step) {
          for (int unit = 0; unit < step; ++unit) {
            EXPECT_EQ(image.unit_after(image.unit(row, unit), further),
                      image.unit(row, unit + further))
                << dim << ' ' << row << ' ' << unit << ' ' << further;
          }
        }
      }
    }
  }
}

// As row_gather.cuh copies: a lane has a unit of an atom, and that of the next atom is a fixed
// distance further.
TEST(KvImage, GatheredRowsFillATileWithoutBankConflicts) {
  for (const int dim : {256, 320, 576}) {
    const KvImage image{dim};
    std::set<int> written;
    for (int row = 0; row < kGatherWarps * gather_rows(64); ++row) {  // eight lanes each
      for (int atom = 0; atom < image.atoms(); ++atom) {
        std::set<int> banks;
        for (int unit = 0; unit < 8; ++unit) {
          const int place = image.unit(row, unit) + atom * image.atom_bytes();
          EXPECT_EQ(place, image.unit(row, atom * 8 + unit)) << dim << ' ' << row << ' ' << unit;
          EXPECT_EQ(place % 16, 0);
          written.insert(place);
          banks.insert(place / 16 % 8);
        }
        EXPECT_EQ(banks.size(), 8u) << dim << ' ' << row << ' ' << atom;
      }
    }
    EXPECT_EQ(written.size() * 16, static_cast<std::size_t>(image.bytes(kRows)));
    EXPECT_EQ(*written.rbegin() + 16, image.bytes(kRows));
  }
}

}  // namespace
}  // namespace kvmesh::cuda
