// The layout of rows in shared memory, the same for every copy method. One text for the host's
// tests and for the kernels.
//
// An atom is 8 rows of 64 16-bit elements, 1 KB, in which the 16-byte units of row r are exchanged
// by `unit ^ r` (the 128-byte swizzle of wgmma and of the copy engine). Eight rows of all their
// elements are a group: atoms one after another.
//
//   group 0: [atom 0][atom 1]...   rows 0 ..  7
//   group 1: [atom 0][atom 1]...   rows 8 .. 15
//
// Atoms overlap if 64 does not divide the dim: of 96 dims they have 0 .. 63 and 32 .. 95, of
// 160 they begin at 0, 48 and 96. Dims that lie in two atoms are there twice: the copy engine
// brings 64 bytes of a row as slowly as 128. A dim of 224 has no such steps; its atoms have rows of
// 32 elements, exchanged by `unit ^ r / 2` (the 64-byte swizzle).
//
// The same bytes serve as keys, read along a row (K-major), and as values, read across rows
// (MN-major). Page size, rows of a tile and stages do not enter into it.
//
// Rows of an atom of 8-bit elements, which wgmma does not read, have 128 of them, or 64. Either way
// 8 rows' units of one number lie in different banks.
#pragma once

#include <cstdint>

namespace kvmesh::cuda {

inline constexpr int kAtomRows = 8;
inline constexpr int kLongRowBytes = 128;  ///< of an atom; short ones have half

/// The description of a swizzled operand that begins at a shared address, itself a multiple of 16
/// in an atom that begins at a multiple of its size.
///
///   rows along K (queries, keys, weights): `stride` is from 8 rows to the next 8; `leading` unused
///   rows along M or N (values): `stride` is from 8 rows to the next 8, `leading` from atom to atom
///
/// bits 0 .. 13 address / 16, 16 .. 29 leading / 16, 32 .. 45 stride / 16, 62 .. 63: 1 for the
/// 128-byte swizzle, 2 for that of 64 bytes.
constexpr std::uint64_t wgmma_operand(std::uint32_t address, int leading_bytes, int stride_bytes,
                                      int row_bytes = kLongRowBytes) {
  return std::uint64_t{(address & 0x3FFFFu) >> 4} |
         static_cast<std::uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<std::uint64_t>(stride_bytes >> 4) << 32 |
         std::uint64_t{row_bytes == kLongRowBytes ? 1u : 2u} << 62;
}

/// Groups are 8 rows of `dim` elements: a multiple of 32 of 16 bits, or of 64 of 8 bits.
struct KvImage {
  int dim;
  int element_bytes = 2;

  /// Elements of a row of an atom.
  constexpr int atom_elements() const {
    const int most = kLongRowBytes / element_bytes;
    return dim % most == 0 || overlap_step() > 0 ? most : most / 2;
  }
  /// From the first element of an atom to that of the next.
  constexpr int atom_step() const { return overlap_step() > 0 ? overlap_step() : atom_elements(); }
  constexpr int atoms() const { return (dim - atom_elements()) / atom_step() + 1; }
  constexpr int row_bytes() const { return atom_elements() * element_bytes; }
  constexpr int atom_bytes() const { return kAtomRows * row_bytes(); }
  constexpr int atom_units() const { return row_bytes() / 16; }
  constexpr int group_bytes() const { return atoms() * atom_bytes(); }
  constexpr int bytes(int rows) const { return rows / kAtomRows * group_bytes(); }
  /// Bytes of a row, with those that are stored twice counted twice.
  constexpr int stored_units() const { return atoms() * atom_units(); }
  /// Returns where the 16 bytes lie that are number `stored` in the order of atoms.
  constexpr int stored_unit(int row, int stored) const {
    const int units = atom_units(), in_group = row % kAtomRows;
    const int in_atom = stored % units ^ in_group * units / 8;
    return row / kAtomRows * group_bytes() +
           (stored / units * kAtomRows * units + in_group * units + in_atom) * 16;
  }
  /// Returns where 16 bytes of a row begin; `unit` counts them from the beginning of the row.
  constexpr int unit(int row, int unit) const {
    const int elements = 16 / element_bytes;
    const int atom = atom_of(unit * elements);
    return stored_unit(row, unit + atom * (atom_elements() - atom_step()) / elements);
  }
  /// Returns unit(row, unit + further) from `at`, which is unit(row, unit): for constants
  /// `further`, multiples of a power of two that is larger than `unit`. That takes two
  /// instructions. Only where atoms do not overlap.
  constexpr int unit_after(int at, int further) const {
    const int units = atom_units();
    return (at ^ further % units * 16) + further / units * atom_bytes();
  }

  /// The columns of products that read across rows, where each dim is to be computed once: one part
  /// of all dims or, where more than two atoms overlap, a part of those dims of each that the one
  /// before lacks.
  constexpr int part_begin(int part) const {
    return part == 0 ? 0 : (part - 1) * atom_step() + atom_elements();
  }
  constexpr int part_end(int part) const {
    return overlap_step() > 0 && atoms() > 2 ? part * atom_step() + atom_elements() : dim;
  }

  /// Returns the description of an operand of wgmma that begins at `address`. After the dims of an
  /// atom it goes on where the next one has those that follow.
  constexpr std::uint64_t operand(std::uint32_t address) const {
    const int leading = atom_bytes() + (atom_elements() - atom_step()) * element_bytes;
    return wgmma_operand(address, leading, group_bytes(), row_bytes());
  }
  /// Returns the distance from an operand's beginning to dim `dim_begin`, a multiple of 16, and
  /// `groups` groups of rows, in its unit of 16 bytes.
  constexpr int further(int dim_begin, int groups = 0) const {
    const int atom = atom_of(dim_begin);
    return (groups * group_bytes() + atom * atom_bytes() +
            (dim_begin - atom * atom_step()) * element_bytes) /
           16;
  }

 private:
  /// Returns 0 if atoms do not overlap.
  constexpr int overlap_step() const {
    if (element_bytes != 2 || dim % 64 == 0 || (dim - 64) % (dim / 64) != 0) return 0;
    return (dim - 64) / (dim / 64);
  }
  /// Returns the last atom that begins at the element or before.
  constexpr int atom_of(int element) const {
    const int atom = element / atom_step();
    return atom < atoms() ? atom : atoms() - 1;
  }
};

}  // namespace kvmesh::cuda
