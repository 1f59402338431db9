// Sequences of a step that begin with the same pages: a plan reads these once for all of them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/mods/graph.hpp"
#include "kvmesh/page.hpp"

namespace kvmesh {

struct AttendSequence;
struct AttendSteps;

/// Sequences whose first `pages` pages on this rank are the same, every token of them written.
struct SharedPrefix {
  std::int64_t pages = 0;
  std::vector<std::int32_t> sequences{};  ///< at least two
};

/// A query token of a work block of several sequences.
struct SharedToken {
  std::int64_t token = 0;
  std::int32_t sequence = 0;
};

/// The rules for which prefixes are worth a task of their own.
struct SharedPrefixRules {
  int page_size = 0;
  std::int64_t most_queries = 0;  ///< a sequence with more has enough rows for its pages alone
  /// Tokens that need not be read again: of n sequences, n - 1 times those of the prefix.
  std::int64_t least_saved_tokens = 0;
  std::int64_t least_saved_per_sequence = 0;  ///< and as many more for each of the n

  bool pays(const SharedPrefix& prefix) const {
    const std::int64_t sequences = std::ssize(prefix.sequences);
    return (sequences - 1) * prefix.pages * page_size >=
           least_saved_tokens + sequences * least_saved_per_sequence;
  }
  /// The same with a caller's least number, if there is one.
  SharedPrefixRules with(std::optional<std::int64_t> least) const {
    if (!least) return *this;
    return {.page_size = page_size, .most_queries = most_queries, .least_saved_tokens = *least};
  }
};

/// Returns prefixes such that no sequence is in two, and that save many reads: of a tree of
/// prefixes the level that saves most. Takes time in proportion to the pages of the prefixes.
std::vector<SharedPrefix> find_shared_prefixes(std::span<const AttendSequence> sequences,
                                               const SharedPrefixRules& rules);

/// Returns how many of the prefix's first pages every query of its sequences provably sees whole.
/// `first_tokens` [sequences] are the numbers of their first queries. A mask that depends on the
/// head shares nothing.
std::int64_t pages_seen_whole(const ModGraph& mask, const AttendSteps& steps,
                              std::span<const std::int64_t> first_tokens,
                              const SharedPrefix& prefix, int page_size);

}  // namespace kvmesh
