// Types for ranks, pages, sequences and element types.
//
// Every kind of id is a type of its own, so that a call cannot swap an index, a count and an id.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kvmesh/api.h"
#include "kvmesh/dtype.hpp"

namespace KVMESH_API kvmesh {

/// Returns false for a value that is not an element type.
constexpr bool is_valid(Dtype dtype) { return info_of(dtype).bits != 0; }

constexpr std::size_t size_bytes(Dtype dtype) {
  return static_cast<std::size_t>(info_of(dtype).bits) / 8;
}

/// "float32", "float16", "bfloat16" or "float8_e4m3".
constexpr std::string_view name(Dtype dtype) { return info_of(dtype).name; }
/// Returns the element type called `text`. @throws InvalidArgument, which lists the choices.
Dtype dtype_from(std::string_view text);

/// A process (or, in the loopback communicator, a thread): its number in a communicator.
struct Rank {
  std::int32_t value = 0;
  friend auto operator<=>(Rank, Rank) = default;
};

/// One of the pools that a page table's pages are in. Membership says which Rank holds its pages.
struct PageRank {
  std::int32_t value = 0;
  friend auto operator<=>(PageRank, PageRank) = default;
};

/// A request whose keys and values are cached.
///
///   bit 63          48 47               24 23         0
///      [  space : 16  ][ generation : 24  ][ slot : 24 ]
///
/// The space is the allocator's (AllocatorOptions::id_space), so another allocator refuses the id.
/// The generation counts the uses of the slot, so an id stays invalid after its sequence is erased.
struct SequenceId {
  static constexpr int kSlotBits = 24;
  static constexpr int kGenerationBits = 24;

  std::uint64_t value = 0;

  constexpr SequenceId() = default;
  constexpr explicit SequenceId(std::uint64_t bits) : value(bits) {}
  constexpr SequenceId(std::uint16_t space, std::uint32_t generation, std::uint32_t slot)
      : value(std::uint64_t{space} << (kSlotBits + kGenerationBits) |
              std::uint64_t{generation} << kSlotBits | slot) {}

  /// A small number that is unique among the living sequences of the allocator.
  constexpr std::uint32_t slot() const { return bits(0, kSlotBits); }
  constexpr std::uint32_t generation() const { return bits(kSlotBits, kGenerationBits); }
  constexpr std::uint16_t space() const {
    return static_cast<std::uint16_t>(value >> (kSlotBits + kGenerationBits));
  }
  friend auto operator<=>(SequenceId, SequenceId) = default;

 private:
  constexpr std::uint32_t bits(int first, int count) const {
    return static_cast<std::uint32_t>(value >> first & ((std::uint64_t{1} << count) - 1));
  }
};

/// "#17 (life 2, space 3)": the slot, the number of sequences that have used the slot up to this
/// one, and the space.
std::string describe(SequenceId sequence);

/// A physical page: its page rank and its index in the pool of that page rank.
///
///   bit 31        22 21                    0
///      [ rank : 10 ][      index : 22      ]
///
/// Page ranks number the pools along the mesh's `kv_parallel` axis: ranks that differ only in
/// `head_parallel` share one page table and hold other heads of the same page.
class PageId {
 public:
  static constexpr int kIndexBits = 22;
  static constexpr std::int32_t kMaxPagesPerRank = 1 << kIndexBits;
  static constexpr std::int32_t kMaxRanks = (1 << (32 - kIndexBits)) - 1;

  /// No page: a bit pattern that no rank below `kMaxRanks` can have.
  constexpr PageId() = default;
  constexpr PageId(PageRank rank, std::int32_t index)
      : bits_(static_cast<std::uint32_t>(rank.value) << kIndexBits |
              static_cast<std::uint32_t>(index)) {}

  constexpr PageRank rank() const { return {static_cast<std::int32_t>(bits_ >> kIndexBits)}; }
  constexpr std::int32_t index() const {
    return static_cast<std::int32_t>(bits_ & (kMaxPagesPerRank - 1));
  }
  constexpr std::uint32_t bits() const { return bits_; }
  constexpr bool valid() const { return bits_ != kNone; }

  friend auto operator<=>(PageId, PageId) = default;

 private:
  static constexpr std::uint32_t kNone = 0xFFFF'FFFF;
  std::uint32_t bits_ = kNone;
};

}  // namespace kvmesh

template <>
struct std::hash<kvmesh::SequenceId> {
  std::size_t operator()(kvmesh::SequenceId id) const noexcept {
    return std::hash<std::uint64_t>{}(id.value);
  }
};
template <>
struct std::hash<kvmesh::PageId> {
  std::size_t operator()(kvmesh::PageId id) const noexcept {
    return std::hash<std::uint32_t>{}(id.bits());
  }
};
template <>
struct std::hash<kvmesh::PageRank> {
  std::size_t operator()(kvmesh::PageRank rank) const noexcept {
    return std::hash<std::int32_t>{}(rank.value);
  }
};
template <>
struct std::hash<kvmesh::Rank> {
  std::size_t operator()(kvmesh::Rank rank) const noexcept {
    return std::hash<std::int32_t>{}(rank.value);
  }
};
