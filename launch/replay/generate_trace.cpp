#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "launch/replay/statistics.hpp"
#include "launch/replay/trace.hpp"

namespace kvmesh::replay {
namespace {

constexpr std::int64_t kSearched = 64;

const Statistics& statistics_of(std::string_view name) {
  std::string names;
  for (const Statistics& statistics : kTraces) {
    if (name == statistics.name) return statistics;
    names += (names.empty() ? "" : ", ") + std::string(statistics.name);
  }
  throw InvalidArgument(fmt::format("there is no trace '{}' to draw: {}", name, names));
}

class Generator {
 public:
  Generator(const Statistics& statistics, std::uint64_t seed)
      : statistics_(statistics), random_(seed) {}

  Trace generate(std::int64_t requests) {
    Trace trace{.name = statistics_.name, .requests = {}};
    const double gap_s = statistics_.seconds / static_cast<double>(statistics_.requests - 1);
    for (std::int64_t i = 0; i < requests; ++i)
      trace.requests.push_back(next(trace.requests, static_cast<double>(i) * gap_s));
    return trace;
  }

 private:
  Request next(const std::vector<Request>& earlier, double arrival_s) {
    Request request{.arrival_s = arrival_s,
                    .prompt_tokens = 0,
                    .answer_tokens = draw(statistics_.answer, random_),
                    .blocks = {}};
    const double chance = static_cast<double>(random_() >> 11) * 0x1p-53;
    const Sharing& sharing = statistics_.sharing;
    const Quantiles& lengths = sharing.continues == 0       ? statistics_.prompt
                               : chance < sharing.continues ? sharing.prompt
                                                            : sharing.other_prompt;
    request.prompt_tokens = draw(lengths, random_);
    const auto blocks =
        static_cast<std::size_t>((request.prompt_tokens + kBlockTokens - 1) / kBlockTokens);
    if (chance < sharing.continues) {
      go_on(request, blocks, earlier);
    } else if (chance < sharing.continues + (1 - sharing.continues) * sharing.has_common) {
      request.blocks.push_back(kCommon);
    }
    while (request.blocks.size() < blocks) request.blocks.push_back(next_block_++);
    return request;
  }

  // Begins as an earlier request, which came about as long ago as the statistics say and has as
  // many blocks as are to be shared: the nearest one, or else the longest of those near.
  void go_on(Request& request, std::size_t blocks, const std::vector<Request>& earlier) {
    const std::int64_t ago = draw(statistics_.sharing.requests_ago, random_);
    const double part = draw_real(statistics_.sharing.part, random_);
    const auto shared = static_cast<std::size_t>(std::lround(part * static_cast<double>(blocks)));
    const Request* best = nullptr;
    for (std::int64_t i = 0; i < kSearched; ++i) {
      const std::int64_t at = std::ssize(earlier) - ago + (i % 2 == 0 ? i / 2 : -(i + 1) / 2);
      if (at < 0 || at >= std::ssize(earlier)) continue;
      const Request& candidate = earlier[static_cast<std::size_t>(at)];
      if (best == nullptr || candidate.blocks.size() > best->blocks.size()) best = &candidate;
      if (full_blocks(*best) >= shared) break;
    }
    if (best == nullptr) return;
    const std::size_t count = std::min({shared, full_blocks(*best), blocks});
    request.blocks.assign(best->blocks.begin(),
                          best->blocks.begin() + static_cast<std::ptrdiff_t>(count));
  }

  static std::size_t full_blocks(const Request& request) {
    return static_cast<std::size_t>(request.prompt_tokens / kBlockTokens);
  }

  static constexpr std::uint32_t kCommon = 0;
  const Statistics& statistics_;
  std::mt19937_64 random_;
  std::uint32_t next_block_ = 1;
};

}  // namespace

Trace generated_trace(std::string_view name, std::int64_t requests, std::uint64_t seed) {
  const Statistics& statistics = statistics_of(name);
  return Generator(statistics, seed).generate(requests > 0 ? requests : statistics.requests);
}

}  // namespace kvmesh::replay
