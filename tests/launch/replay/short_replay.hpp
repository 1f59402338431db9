// Replays that end soon.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>

#include "launch/replay/allocator_only.hpp"

namespace kvmesh::replay {

/// Serves the trace from an allocator, which is empty afterwards.
inline ReplayCounts counts_of(const Trace& trace, const ReplayOptions& options) {
  AllocatorOnly served(allocator_options(options));
  const ReplayCounts counts = Replay(trace, options, served).run([](std::size_t) {});
  served.allocator().verify_integrity();
  EXPECT_EQ(served.allocator().sequences(), 0);
  EXPECT_EQ(served.allocator().free_pages(),
            options.ranks * served.allocator().options().pages_per_rank);
  return counts;
}

/// Drawn requests of a few pages.
inline Trace short_requests() {
  Trace trace = generated_trace("synthetic", 40, 3);
  for (Request& request : trace.requests) {
    request.prompt_tokens = std::min<std::int64_t>(request.prompt_tokens, 3000);
    request.blocks.resize(static_cast<std::size_t>((request.prompt_tokens + 511) / 512));
    request.answer_tokens = std::min<std::int64_t>(request.answer_tokens, 40);
  }
  return trace;
}

}  // namespace kvmesh::replay
