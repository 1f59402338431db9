#include "launch/cli/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "launch/cli/tier_report.hpp"

namespace kvmesh::launch {
namespace {

// A rate; 0 if nothing happened.
double per_second(std::int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
}

std::vector<std::int64_t> pages_of_ranks(std::span<const PageId> pages, int ranks) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks));
  for (PageId page : pages) ++counts[static_cast<std::size_t>(page.rank().value)];
  return counts;
}

// The world ranks that hold the pages of kv rank `rank`, each with other heads.
std::string name_of(std::size_t rank, int head_parallel) {
  const std::size_t first = rank * static_cast<std::size_t>(head_parallel);
  if (head_parallel == 1) return fmt::format("rank {:<3}", first);
  return fmt::format("ranks {}-{:<3}", first, first + static_cast<std::size_t>(head_parallel) - 1);
}

// All turns as one run.
Run sum_of(const GenerateReport& report) {
  Run sum;
  for (const GenerateReport::Turn& turn : report.turns) {
    sum.tokens.insert(sum.tokens.end(), turn.run.tokens.begin(), turn.run.tokens.end());
    sum.prompt_seconds += turn.run.prompt_seconds;
    sum.new_seconds += turn.run.new_seconds;
    sum.prompt_tokens += turn.run.prompt_tokens;
    sum.cached_tokens += turn.run.cached_tokens;
    sum.ended = turn.run.ended;
  }
  return sum;
}

std::string describe_turn(const GenerateReport& report, std::size_t turn) {
  const Run& run = report.turns[turn].run;
  return fmt::format(
      "{}{} prompt tokens{} in {:.2f} s ({:.1f} tokens/s), {} new tokens in {:.2f} s ({:.1f} "
      "tokens/s)\n",
      report.turns.size() > 1 ? fmt::format("turn {}: ", turn + 1) : "", run.prompt_tokens,
      run.cached_tokens > 0 ? fmt::format(", of which {} cached,", run.cached_tokens) : "",
      run.prompt_seconds, per_second(run.prompt_tokens - run.cached_tokens, run.prompt_seconds),
      run.tokens.size(), run.new_seconds, per_second(std::ssize(run.tokens), run.new_seconds));
}

nlohmann::ordered_json json_of(const Run& run, const std::string& text) {
  return {{"text", text},
          {"tokens", run.tokens},
          {"ended", run.ended},
          {"prompt_tokens", run.prompt_tokens},
          {"cached_tokens", run.cached_tokens},
          {"prompt_seconds", run.prompt_seconds},
          {"new_tokens", run.tokens.size()},
          {"new_seconds", run.new_seconds}};
}

std::string describe_combine(const GenerateReport& report) {
  if (!report.combine_bytes) return "the combine went over NCCL";
  const Run run = sum_of(report);
  const std::int64_t tokens =
      std::max<std::int64_t>(1, run.prompt_tokens - run.cached_tokens + std::ssize(run.tokens));
  const auto bytes = static_cast<double>(*report.combine_bytes);
  return fmt::format("the combine moved {} between ranks, {} per token", human_bytes(bytes),
                     human_bytes(bytes / static_cast<double>(tokens)));
}

// The number of pages that a fraction of the memory gives.
std::string describe_room(const GenerateReport& report) {
  if (!report.pool_bytes) return {};
  return fmt::format("  room for {} pages per rank, in {}\n", report.cache.pages_per_rank,
                     human_bytes(static_cast<double>(*report.pool_bytes)));
}

}  // namespace

std::string human_bytes(double bytes) {
  constexpr std::array kUnits{"B", "KB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  for (; bytes >= 1000 && unit + 1 < kUnits.size(); ++unit) bytes /= 1000;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, kUnits[unit]);
}

std::string describe(const GenerateReport& report) {
  std::string turns;
  for (std::size_t turn = 0; turn < report.turns.size(); ++turn)
    turns += describe_turn(report, turn);
  return fmt::format(
      "{}{}\n"
      "{} KV pages ({} tokens x {} layers each) over {} ranks, {} placement\n{}{}{}",
      turns, describe_combine(report), report.pages.size(), report.cache.page_size,
      report.cache.layers, report.kv_parallel * report.head_parallel, name(report.cache.placement),
      describe_room(report), describe_tiers(report.cache.tiers, report.tiers),
      picture_of_pages(report.pages, report.kv_parallel, report.head_parallel));
}

std::string describe_check(int ranks, bool same) {
  return fmt::format("ranks check: {} ranks and a single rank wrote {} tokens\n", ranks,
                     same ? "the same"
                          : "DIFFERENT (of two tokens that are nearly as likely, rounding may "
                            "choose either, unless --reproducible)");
}

std::string to_json(const GenerateReport& report) {
  nlohmann::ordered_json json{
      {"program", "kvmesh " + report.command},
      {"version", KVMESH_VERSION},
      {"model", report.model},
      {"ranks", report.kv_parallel * report.head_parallel},
      {"kv_parallel", report.kv_parallel},
      {"head_parallel", report.head_parallel},
      {"turns", nlohmann::ordered_json::array()},
      {"combine_bytes", nullptr},
      {"page_size", report.cache.page_size},
      {"layers", report.cache.layers},
      {"pages_per_rank", report.cache.pages_per_rank},
      {"placement", name(report.cache.placement)},
      {"kv_dtype", name(report.cache.dtype)},
      {"pages_of_kv_ranks", pages_of_ranks(report.pages, report.kv_parallel)},
      {"ranks_check", nullptr}};
  std::string text;
  for (const GenerateReport::Turn& turn : report.turns) {
    json["turns"].push_back(json_of(turn.run, turn.text));
    text += (text.empty() ? "" : "\n") + turn.text;
  }
  json.update(json_of(sum_of(report), text));
  if (report.cache.tiers.enabled()) json["tiers"] = json_of(report.tiers);
  if (report.combine_bytes) json["combine_bytes"] = *report.combine_bytes;
  if (report.ranks_check) json["ranks_check"] = *report.ranks_check;
  // A path may hold any bytes.
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string picture_of_pages(std::span<const PageId> pages, int kv_parallel, int head_parallel) {
  constexpr std::int64_t kWidth = 40;
  const std::vector<std::int64_t> counts = pages_of_ranks(pages, kv_parallel);
  const std::int64_t most = std::max<std::int64_t>(1, *std::ranges::max_element(counts));
  const std::int64_t per_mark = (most + kWidth - 1) / kWidth;
  std::string picture;
  for (std::size_t rank = 0; rank < counts.size(); ++rank) {
    const std::int64_t marks = (counts[rank] + per_mark - 1) / per_mark;
    picture += fmt::format("  {} {:<{}}  {} pages\n", name_of(rank, head_parallel),
                           std::string(static_cast<std::size_t>(marks), '#'),
                           std::min(most, kWidth), counts[rank]);
  }
  return picture;
}

}  // namespace kvmesh::launch
