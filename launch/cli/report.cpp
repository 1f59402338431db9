#include "launch/cli/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <vector>

namespace kvmesh::launch {
namespace {

// A rate that is honest about nothing having happened.
double per_second(std::int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
}

}  // namespace

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array kUnits{"B", "KB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 1, kUnits[unit]);
}

std::string describe(const GenerateReport& report) {
  const std::int64_t tokens = std::max<std::int64_t>(1, report.prompt_tokens + report.new_tokens);
  const std::string combine =
      report.combine_bytes
          ? fmt::format("the combine moved {} between ranks, {} a token",
                        human_bytes(*report.combine_bytes),
                        human_bytes(*report.combine_bytes / static_cast<std::uint64_t>(tokens)))
          : std::string("the combine went over NCCL");
  return fmt::format(
      "{} prompt tokens in {:.2f} s ({:.1f} tokens/s), {} new tokens in {:.2f} s ({:.1f} "
      "tokens/s)\n"
      "{}\n",
      report.prompt_tokens, report.prompt_seconds,
      per_second(report.prompt_tokens, report.prompt_seconds), report.new_tokens,
      report.new_seconds, per_second(report.new_tokens, report.new_seconds), combine);
}

std::string picture_of_pages(std::span<const PageId> pages, int ranks) {
  constexpr std::int64_t kWidth = 40;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks));
  for (PageId page : pages) ++counts[static_cast<std::size_t>(page.rank().value)];
  const std::int64_t most = std::max<std::int64_t>(1, *std::ranges::max_element(counts));
  const std::int64_t per_mark = (most + kWidth - 1) / kWidth;
  std::string picture;
  for (std::size_t rank = 0; rank < counts.size(); ++rank) {
    const std::int64_t marks = (counts[rank] + per_mark - 1) / per_mark;
    picture += fmt::format("  rank {:<3} {:<{}}  {} pages\n", rank,
                           std::string(static_cast<std::size_t>(marks), '#'),
                           std::min(most, kWidth), counts[rank]);
  }
  return picture;
}

}  // namespace kvmesh::launch
