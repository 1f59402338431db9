// A plain model of the allocator, with the memory that it stands for.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "kvmesh/allocator.hpp"

namespace kvmesh::test {

/// Sequences as vectors of tokens. Every token has a number of its own; the model writes it into a
/// map of pages, through the allocator's page tables, and later expects to read it there. So a page
/// that is wrongly shared, a missing copy, or a page handed out twice shows as a wrong token.
/// Reference counts, free pages and generations are counted from the tables.
class Model {
 public:
  explicit Model(const AllocatorOptions& options)
      : options_(options), pools_(static_cast<std::size_t>(options.ranks), options.pages_per_rank) {
    if (!options.pool_pages.empty()) pools_ = options.pool_pages;
  }

  struct Sequence {
    std::vector<std::int64_t> tokens;
    std::vector<PageId> pages;
  };
  const std::map<SequenceId, Sequence>& sequences() const { return sequences_; }
  std::int64_t free_pages() const;

  // Pages that an operation lacks.
  std::int64_t missing_for_reserve(SequenceId id, std::int64_t tokens) const;
  std::int64_t missing_for_append(std::span<const AppendRequest> requests) const;
  std::int64_t missing_for_writable(SequenceId id, std::int64_t begin, std::int64_t end) const;

  /// Pages that a pool of another size lacks for those that are held past it, and how many are.
  std::int64_t held_past(PageRank rank, std::int64_t pages) const;
  std::int64_t held_on(PageRank rank) const { return held_past(rank, 0); }
  std::int64_t pool_pages(PageRank rank) const {
    return pools_[static_cast<std::size_t>(rank.value)];
  }

  // Follow an operation of the allocator, by its new page tables.
  void created(SequenceId id) { sequences_[id]; }
  void reserved(const PageAllocator& allocator, SequenceId id);
  void appended(const PageAllocator& allocator, std::span<const AppendRequest> requests,
                std::span<const PageCopy> copies);
  void made_writable(const PageAllocator& allocator, SequenceId id, std::int64_t begin,
                     std::int64_t end, std::span<const PageCopy> copies);
  void forked(const PageAllocator& allocator, SequenceId parent, SequenceId child);
  void truncated(const PageAllocator& allocator, SequenceId id, std::int64_t length);
  void erased(SequenceId id) { sequences_.erase(id); }
  void resized(PageRank rank, std::int64_t pages) {
    pools_[static_cast<std::size_t>(rank.value)] = pages;
  }
  void moved(const PageAllocator& allocator, std::span<const PageCopy> copies);
  void not_moved(std::span<const PageCopy> copies);

  /// Moves beside other operations, copied at once or when they are finished: no one writes to the
  /// pages meanwhile.
  void began_moves(std::span<const PageCopy> copies, bool copies_at_once);
  void gave_up_moves() { has_destinations_ = false; }
  /// `moved`: how many the allocator counts.
  void finished_moves(const PageAllocator& allocator, std::int64_t moved);
  void cancelled_moves() { moves_.clear(); }
  bool is_moving() const { return !moves_.empty(); }
  bool was_given_up() const { return !has_destinations_; }

  /// Expects the allocator to show exactly this model's state.
  void check(const PageAllocator& allocator) const;

 private:
  std::int64_t pages_for(std::int64_t tokens) const {
    return (tokens + options_.page_size - 1) / options_.page_size;
  }
  std::map<PageId, std::int32_t> references() const;
  /// One more of pages that are being copied: a sequence that writes to them copies them first.
  std::map<PageId, std::int32_t> references_to_write() const;
  bool is_source(PageId page) const;
  bool is_destination(PageId page) const;
  void take_table(const PageAllocator& allocator, SequenceId id);
  void copy(std::span<const PageCopy> copies);
  void write(const Sequence& sequence, std::int64_t begin, std::int64_t end);
  void check_sequence(const PageAllocator& allocator, SequenceId id,
                      const Sequence& sequence) const;

  AllocatorOptions options_;
  std::vector<std::int64_t> pools_;  // [ranks] pages
  std::map<SequenceId, Sequence> sequences_;
  std::map<PageId, std::vector<std::int64_t>> memory_;
  std::map<PageId, std::uint32_t> handed_out_;
  std::int64_t next_token_ = 1;
  std::vector<PageCopy> moves_;
  bool has_destinations_ = false;
  bool copies_at_once_ = false;
};

}  // namespace kvmesh::test
