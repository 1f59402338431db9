// The global page allocator: which rank holds which page of which sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvmesh/error.hpp"
#include "kvmesh/types.hpp"

namespace kvmesh {

/// How new pages are spread over the ranks.
enum class Placement : std::uint8_t {
  kBalanced,  ///< Short sequences whole on one rank, long ones evenly over all. The default.
  kStriped,   ///< Page i of a sequence on rank (i + start) mod ranks.
  kPacked,    ///< Fill rank 0, then rank 1, ...
};

std::string_view name(Placement placement);
/// The placement called `text` ("balanced", "striped", "packed"). @throws InvalidArgument.
Placement placement_from(std::string_view text);

struct AllocatorOptions {
  int ranks = 1;
  std::int64_t pages_per_rank = 0;
  int page_size = 16;
  Placement placement = Placement::kBalanced;
  /// Balanced placement: a sequence of up to this many tokens lives whole on one home rank, the one
  /// with the most free pages at its first page. Later pages go to the rank that holds the fewest
  /// of the sequence.
  std::int64_t home_threshold_tokens = 2048;
  /// Stands in every SequenceId, so that allocators refuse one another's. The same on every rank,
  /// and another for each allocator whose ids a program could mix up; not part of the digest.
  /// 0: worked out from the other options, so that only allocators with equal options take one
  /// another's ids. (A KvCache draws one that all ranks agree on and no other cache has.)
  std::uint16_t id_space = 0;
};

/// Copy the first `tokens` tokens of page `source` to page `destination`, in every layer, before
/// anything is appended: copy on write of a page that a fork shares.
struct PageCopy {
  PageId source;
  PageId destination;
  int tokens = 0;
  friend bool operator==(const PageCopy&, const PageCopy&) = default;
};

/// Append `tokens` new positions to `sequence`.
struct AppendRequest {
  SequenceId sequence;
  std::int64_t tokens = 0;
};

/// One line of the allocator's journal: operation `number`, the first being 0, left the state at
/// `digest`. `sequence` is the one it was about: the new one for create and fork, the first of the
/// batch for append.
struct JournalEntry {
  std::uint64_t number = 0;
  std::uint64_t digest = 0;
  std::string_view operation;
  SequenceId sequence;
};

/// A deterministic state machine over metadata: it moves no keys and talks to no one. Every rank
/// holds a copy and applies the same operations in the same order, so all copies agree without a
/// message; `digest()` shows it.
///
/// Positions are logical and start at 0. `capacity` counts tokens that pages are held for, `length`
/// those that were appended; length <= capacity = pages * page_size.
///
/// A page that is given back is the first to be handed out again on its rank. When the rank that
/// placement wants is full another one serves: an operation runs out only if all ranks are full.
///
/// Strong guarantee: an operation that throws (or whose `try_` form returns empty) changed nothing.
/// Not thread-safe: one thread drives a copy. Complexity is amortised O(1) a page, but O(ranks)
/// where a rank is chosen: for a sequence's home, for a page that balanced placement puts past the
/// threshold, and where ranks are full.
class PageAllocator {
 public:
  /// @throws InvalidArgument on options that no state can serve.
  explicit PageAllocator(const AllocatorOptions& options);
  ~PageAllocator();
  PageAllocator(PageAllocator&&) noexcept;
  PageAllocator& operator=(PageAllocator&&) noexcept;

  const AllocatorOptions& options() const;

  /// A new, empty sequence.
  SequenceId create();

  /// Makes room for at least `tokens` tokens in all. Less than the capacity: does nothing.
  /// @throws OutOfPages, UnknownSequence, InvalidArgument (negative).
  void reserve(SequenceId sequence, std::int64_t tokens);
  [[nodiscard]] bool try_reserve(SequenceId sequence, std::int64_t tokens);

  /// Lengthens the sequences, reserving what they lack, all of them or none. Returns the copies
  /// to do first: the last page of a sequence is copied if it is not full and a fork shares it.
  /// The copy stays on its rank if that has a free page. When all that share a page are in the
  /// batch, the last of them keeps it. A sequence may appear once.
  /// @throws OutOfPages (all that the batch lacks, copies included), UnknownSequence,
  /// InvalidArgument.
  std::vector<PageCopy> append(std::span<const AppendRequest> requests);
  std::vector<PageCopy> append(SequenceId sequence, std::int64_t tokens);
  [[nodiscard]] std::optional<std::vector<PageCopy>> try_append(
      std::span<const AppendRequest> requests);

  /// Makes positions [begin, end) of the sequence, all within its capacity, writable in place:
  /// every page there that a fork shares is replaced by a page of its own. Returns the copies to do
  /// first.
  /// @throws OutOfPages, UnknownSequence, InvalidArgument.
  std::vector<PageCopy> make_writable(SequenceId sequence, std::int64_t begin, std::int64_t end);

  /// A new sequence with the same content, sharing all pages that hold content (not those that are
  /// only reserved). Copy on write.
  /// Needs no page, so it cannot run out. @throws UnknownSequence.
  SequenceId fork(SequenceId sequence);

  /// Shortens to `length` tokens (rolls back speculation) and gives back the pages wholly past it,
  /// those that were only reserved too: the capacity becomes `length`, rounded up to whole pages.
  /// @throws UnknownSequence, InvalidArgument (longer than it is, negative).
  void truncate(SequenceId sequence, std::int64_t length);

  /// Forgets the sequence and gives back the pages that no fork shares. @throws UnknownSequence.
  void erase(SequenceId sequence);

  bool contains(SequenceId sequence) const;
  /// In tokens. @throws UnknownSequence.
  std::int64_t length(SequenceId sequence) const;
  std::int64_t capacity(SequenceId sequence) const;
  /// The page table in logical order; valid until the next operation on the allocator.
  /// @throws UnknownSequence.
  std::span<const PageId> pages(SequenceId sequence) const;
  std::int64_t sequences() const;
  /// Another number whenever the sequence's content or the pages that hold it change: by appended
  /// tokens, a shorter length, copy on write. What others do (a fork of it, too) leaves it as it
  /// is.
  /// @throws UnknownSequence.
  std::uint64_t version(SequenceId sequence) const;

  std::int64_t free_pages() const;
  std::int64_t free_pages(Rank rank) const;
  /// How many sequences hold the page; 0 for a free one.
  std::int32_t reference_count(PageId page) const;
  /// How often the page was handed out: a reader that remembers it notices reuse.
  std::uint32_t generation(PageId page) const;

  /// Hash of the whole state, O(1): of the options, of every operation that succeeded, with its
  /// arguments, even where it changed nothing, and of every page handed out and freed, in order.
  /// Equal on every rank if all applied the same operations; different, but for one chance in 2^64,
  /// as soon as one did not. It leaves out the ids' space.
  std::uint64_t digest() const;
  /// The last operations (at most 256), oldest first: what to compare when digests differ.
  std::vector<JournalEntry> journal() const;

  /// Checks every invariant the hard way, O(state). @throws Error naming the first that is broken.
  void verify_integrity() const;

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace kvmesh
