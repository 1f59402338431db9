// How much of one sequence a step reads and appends.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Known before the tokens are appended; equal on all ranks.
struct SequenceSize {
  std::int64_t queries = 0;
  std::int64_t length = 0;  ///< tokens on all ranks, those to append included
  std::int64_t appended = 0;
  std::int64_t first_query = 0;  ///< position of its earliest query; without queries `length`
};

}  // namespace kvmesh
