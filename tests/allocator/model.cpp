#include "tests/allocator/model.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace kvmesh::test {
namespace {

constexpr std::int64_t kPoison = -1;

}  // namespace

std::map<PageId, std::int32_t> Model::references() const {
  std::map<PageId, std::int32_t> counts;
  for (const auto& [id, sequence] : sequences_)
    for (PageId page : sequence.pages) ++counts[page];
  return counts;
}

std::map<PageId, std::int32_t> Model::references_to_write() const {
  std::map<PageId, std::int32_t> counts = references();
  for (auto& [page, count] : counts) count += is_source(page) ? 1 : 0;
  return counts;
}

bool Model::is_source(PageId page) const {
  return std::ranges::find(moves_, page, &PageCopy::source) != moves_.end();
}

bool Model::is_destination(PageId page) const {
  return has_destinations_ &&
         std::ranges::find(moves_, page, &PageCopy::destination) != moves_.end();
}

std::int64_t Model::free_pages() const {
  const std::map<PageId, std::int32_t> counts = references();
  auto held = static_cast<std::int64_t>(counts.size());
  for (const PageCopy& move : moves_)
    held += (counts.contains(move.source) ? 0 : 1) + (has_destinations_ ? 1 : 0);
  return std::reduce(pools_.begin(), pools_.end()) - held;
}

std::int64_t Model::held_past(PageRank rank, std::int64_t pages) const {
  const std::map<PageId, std::int32_t> counts = references();
  return std::ranges::count_if(counts, [&](const auto& entry) {
    return entry.first.rank() == rank && entry.first.index() >= pages;
  });
}

std::int64_t Model::missing_for_reserve(SequenceId id, std::int64_t tokens) const {
  const auto held = static_cast<std::int64_t>(sequences_.at(id).pages.size());
  return std::max<std::int64_t>(pages_for(tokens) - held, 0);
}

std::int64_t Model::missing_for_append(std::span<const AppendRequest> requests) const {
  std::map<PageId, std::int32_t> counts = references_to_write();
  std::int64_t missing = 0;
  for (const AppendRequest& request : requests) {
    const Sequence& sequence = sequences_.at(request.sequence);
    const auto length = static_cast<std::int64_t>(sequence.tokens.size());
    missing += missing_for_reserve(request.sequence, length + request.tokens);
    if (request.tokens == 0 || length % options_.page_size == 0) continue;
    std::int32_t& sharers =
        counts[sequence.pages[static_cast<std::size_t>(length / options_.page_size)]];
    if (sharers == 1) continue;
    --sharers;
    ++missing;
  }
  return missing;
}

std::int64_t Model::missing_for_writable(SequenceId id, std::int64_t begin,
                                         std::int64_t end) const {
  const std::map<PageId, std::int32_t> counts = references_to_write();
  const Sequence& sequence = sequences_.at(id);
  std::int64_t missing = 0;
  for (std::size_t logical = 0; logical < sequence.pages.size(); ++logical) {
    const auto first = static_cast<std::int64_t>(logical) * options_.page_size;
    const bool touched = begin < end && first < end && begin < first + options_.page_size;
    if (touched && counts.at(sequence.pages[logical]) > 1) ++missing;
  }
  return missing;
}

/// Reads the sequence's new page table. A page that no table had before was just handed out: its
/// earlier contents are lost.
void Model::take_table(const PageAllocator& allocator, SequenceId id) {
  const std::map<PageId, std::int32_t> before = references();
  const std::span<const PageId> pages = allocator.pages(id);
  for (PageId page : pages) {
    if (before.contains(page)) continue;
    ++handed_out_[page];
    memory_[page].assign(static_cast<std::size_t>(options_.page_size), kPoison);
  }
  sequences_[id].pages.assign(pages.begin(), pages.end());
}

void Model::copy(std::span<const PageCopy> copies) {
  for (const PageCopy& copy : copies) {
    ASSERT_GT(copy.tokens, 0);
    ASSERT_LE(copy.tokens, options_.page_size);
    ASSERT_NE(copy.source, copy.destination);
    std::copy_n(memory_[copy.source].begin(), copy.tokens, memory_[copy.destination].begin());
  }
}

void Model::write(const Sequence& sequence, std::int64_t begin, std::int64_t end) {
  for (std::int64_t position = begin; position < end; ++position) {
    const PageId page = sequence.pages[static_cast<std::size_t>(position / options_.page_size)];
    memory_[page][static_cast<std::size_t>(position % options_.page_size)] =
        sequence.tokens[static_cast<std::size_t>(position)];
  }
}

void Model::reserved(const PageAllocator& allocator, SequenceId id) { take_table(allocator, id); }

void Model::appended(const PageAllocator& allocator, std::span<const AppendRequest> requests,
                     std::span<const PageCopy> copies) {
  for (const AppendRequest& request : requests) take_table(allocator, request.sequence);
  copy(copies);
  for (const AppendRequest& request : requests) {
    Sequence& sequence = sequences_.at(request.sequence);
    const auto length = static_cast<std::int64_t>(sequence.tokens.size());
    for (std::int64_t i = 0; i < request.tokens; ++i) sequence.tokens.push_back(next_token_++);
    write(sequence, length, length + request.tokens);
  }
}

void Model::made_writable(const PageAllocator& allocator, SequenceId id, std::int64_t begin,
                          std::int64_t end, std::span<const PageCopy> copies) {
  take_table(allocator, id);
  copy(copies);
  Sequence& sequence = sequences_.at(id);
  end = std::min(end, static_cast<std::int64_t>(sequence.tokens.size()));
  for (std::int64_t position = begin; position < end; ++position)
    sequence.tokens[static_cast<std::size_t>(position)] = next_token_++;
  write(sequence, begin, end);
}

void Model::forked(const PageAllocator& allocator, SequenceId parent, SequenceId child) {
  sequences_[child].tokens = sequences_.at(parent).tokens;
  take_table(allocator, child);
}

void Model::truncated(const PageAllocator& allocator, SequenceId id, std::int64_t length) {
  sequences_.at(id).tokens.resize(static_cast<std::size_t>(length));
  take_table(allocator, id);
  ASSERT_EQ(static_cast<std::int64_t>(sequences_.at(id).pages.size()), pages_for(length));
}

/// The copies were made before: their sources are held until the tables change. No other entry of a
/// table changes.
void Model::moved(const PageAllocator& allocator, std::span<const PageCopy> copies) {
  std::map<PageId, PageId> to;
  for (const PageCopy& copy : copies) {
    ASSERT_TRUE(to.emplace(copy.source, copy.destination).second) << "a page moves twice";
    ASSERT_FALSE(references().contains(copy.destination));
    ++handed_out_[copy.destination];
    memory_[copy.destination].assign(static_cast<std::size_t>(options_.page_size), kPoison);
  }
  copy(copies);
  for (auto& [id, sequence] : sequences_) {
    for (PageId& page : sequence.pages) {
      if (const auto move = to.find(page); move != to.end()) page = move->second;
    }
    ASSERT_TRUE(std::ranges::equal(allocator.pages(id), sequence.pages));
  }
}

void Model::not_moved(std::span<const PageCopy> copies) {
  for (const PageCopy& copy : copies) ++handed_out_[copy.destination];
}

void Model::began_moves(std::span<const PageCopy> copies, bool copies_at_once) {
  ASSERT_FALSE(is_moving());
  moves_.assign(copies.begin(), copies.end());
  has_destinations_ = is_moving();
  copies_at_once_ = copies_at_once;
  for (const PageCopy& move : moves_) {
    ASSERT_EQ(move.tokens, options_.page_size);
    ASSERT_NE(move.source.rank(), move.destination.rank());
    ++handed_out_[move.destination];
    memory_[move.destination].assign(static_cast<std::size_t>(options_.page_size), kPoison);
    const bool is_full = std::ranges::any_of(sequences_, [&](const auto& entry) {
      const Sequence& sequence = entry.second;
      const auto at = std::ranges::find(sequence.pages, move.source) - sequence.pages.begin();
      return (at + 1) * options_.page_size <= std::ssize(sequence.tokens);
    });
    ASSERT_TRUE(is_full) << "its next tokens would be written in place";
  }
  if (copies_at_once) copy(moves_);
}

void Model::finished_moves(const PageAllocator& allocator, std::int64_t moved) {
  if (!copies_at_once_) copy(moves_);
  const std::map<PageId, std::int32_t> counts = references();
  std::map<PageId, PageId> to;
  for (const PageCopy& move : moves_)
    if (counts.contains(move.source)) to.emplace(move.source, move.destination);
  ASSERT_EQ(std::ssize(to), moved);
  for (auto& [id, sequence] : sequences_) {
    for (PageId& page : sequence.pages) {
      if (const auto move = to.find(page); move != to.end()) page = move->second;
    }
    ASSERT_TRUE(std::ranges::equal(allocator.pages(id), sequence.pages));
  }
  moves_.clear();
}

void Model::check_sequence(const PageAllocator& allocator, SequenceId id,
                           const Sequence& sequence) const {
  ASSERT_TRUE(allocator.contains(id));
  ASSERT_EQ(allocator.length(id), static_cast<std::int64_t>(sequence.tokens.size()));
  ASSERT_EQ(allocator.capacity(id),
            static_cast<std::int64_t>(sequence.pages.size()) * options_.page_size);
  ASSERT_TRUE(std::ranges::equal(allocator.pages(id), sequence.pages));
  for (std::size_t position = 0; position < sequence.tokens.size(); ++position) {
    const auto page_size = static_cast<std::size_t>(options_.page_size);
    ASSERT_EQ(memory_.at(sequence.pages[position / page_size])[position % page_size],
              sequence.tokens[position])
        << "position " << position << " of sequence " << id.value;
  }
}

void Model::check(const PageAllocator& allocator) const {
  ASSERT_NO_THROW(allocator.verify_integrity());
  ASSERT_EQ(allocator.sequences(), static_cast<std::int64_t>(sequences_.size()));
  for (const auto& [id, sequence] : sequences_) check_sequence(allocator, id, sequence);

  const std::map<PageId, std::int32_t> counts = references();
  ASSERT_EQ(allocator.free_pages(), free_pages());
  for (int rank = 0; rank < options_.ranks; ++rank) {
    std::int64_t free = 0;
    for (std::int32_t index = 0; index < options_.pages_per_rank; ++index) {
      const PageId page{PageRank{rank}, index};
      const auto found = counts.find(page);
      const std::int32_t count = is_destination(page)    ? 1
                                 : found == counts.end() ? 0
                                                         : found->second;
      free += count == 0 && !is_source(page) && index < pool_pages(page.rank()) ? 1 : 0;
      ASSERT_EQ(allocator.reference_count(page), count);
      ASSERT_EQ(allocator.is_moving(page), is_source(page));
      const auto times = handed_out_.find(page);
      const std::uint32_t generation = times == handed_out_.end() ? 0u : times->second;
      ASSERT_EQ(allocator.generation(page), generation);
      ASSERT_EQ(allocator.is_current(page, generation), count > 0);
    }
    ASSERT_EQ(allocator.free_pages(PageRank{rank}), free);
    ASSERT_EQ(allocator.pool_pages(PageRank{rank}), pool_pages(PageRank{rank}));
  }
}

}  // namespace kvmesh::test
