// Blocks of query rows of several sequences, which read a prefix of pages once for all of them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/mods/graph.hpp"
#include "kernels/shared_prefixes.hpp"

namespace kvmesh {

/// Query tokens of whole sequences that read the first `pages` pages of one of them.
struct SharedBlock {
  std::int32_t sequence = 0;
  std::int64_t pages = 0;
  std::int64_t token_begin = 0;  ///< places in SharedBlocks::tokens
  std::int64_t token_end = 0;

  std::int64_t tokens() const { return token_end - token_begin; }
};

/// The pages that a sequence leaves to a block.
struct SharedPart {
  std::int32_t block = -1;  ///< -1: none
  std::int32_t token = 0;   ///< the sequence's first of the block's tokens
  std::int64_t pages = 0;   ///< its first ones
};

/// The shared prefixes of one plan, each cut to the pages that every query sees whole.
struct SharedBlocks {
  std::vector<SharedBlock> blocks{};
  std::vector<SharedToken> tokens{};
  std::vector<SharedPart> parts{};  ///< [sequences]; empty: no sequence shares a prefix

  SharedPart part(std::size_t sequence) const {
    return parts.empty() ? SharedPart{} : parts[sequence];
  }
  void clear();
  /// Divides the prefixes of `steps` that still pay under `mask` into blocks of as many whole
  /// sequences as have `most_tokens` query tokens together, and reuses the memory.
  /// REQUIRES: no sequence of a prefix has more.
  void set(const AttendSteps& steps, const ModGraph& mask, std::int64_t most_tokens);

 private:
  void add(const AttendSteps& steps, const SharedPrefix& prefix, std::int64_t most_tokens);

  std::vector<std::int64_t> first_tokens_{};  // [sequences]
};

}  // namespace kvmesh
