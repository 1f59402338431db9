// The work of a bare gather, divided into parts.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/bench/gather_part.hpp"
#include "launch/bench/machine.hpp"

namespace kvmesh::bench {

struct GatherList {
  std::vector<std::int32_t> pages;
  std::vector<GatherPart> parts;
};

/// Divides the sequences into parts of whole pages with about this many tokens, at least one page.
GatherList gather_list(const std::vector<PageReads::Sequence>& sequences, std::int64_t page_size,
                       std::int64_t part_tokens);

/// 512 tokens: blocks that claim pieces of this size end within 2 % of one another. Fewer if not
/// every block would get several pieces.
std::int64_t gather_part_tokens(const std::vector<PageReads::Sequence>& sequences,
                                std::int64_t heads, std::int64_t blocks);

}  // namespace kvmesh::bench
