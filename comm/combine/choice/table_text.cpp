#include "comm/combine/choice/table_text.hpp"

#include <fmt/format.h>

#include <charconv>
#include <span>
#include <sstream>
#include <system_error>

#include "core/crc32c.hpp"

namespace kvmesh {
namespace {

constexpr std::string_view kTitle = "kvmesh combine table 2\n";
constexpr std::string_view kRead = "read ";

/// The enumerator of [0, count) whose name is `text`.
template <class Enum>
std::optional<Enum> named(std::string_view text, int count) {
  for (int i = 0; i < count; ++i) {
    if (name(static_cast<Enum>(i)) == text) return static_cast<Enum>(i);
  }
  return std::nullopt;
}

std::string checksum_line(std::string_view before) {
  return fmt::format("crc32c {:08x}\n", crc32c(std::as_bytes(std::span(before))));
}

std::optional<CombineTime> time_from(std::string_view word) {
  CombineTime time;
  const char* const end = word.data() + word.size();
  const auto bytes = std::from_chars(word.data(), end, time.bytes);
  if (bytes.ec != std::errc{} || bytes.ptr == end || *bytes.ptr != ':') return std::nullopt;
  const auto microseconds = std::from_chars(bytes.ptr + 1, end, time.microseconds);
  if (microseconds.ec != std::errc{} || microseconds.ptr != end) return std::nullopt;
  return time;
}

std::optional<double> rate_from(const std::string& line) {
  double rate = 0;
  const char* const end = line.data() + line.size();
  const auto read = std::from_chars(line.data() + kRead.size(), end, rate);
  if (read.ec != std::errc{} || read.ptr != end || !(rate > 0)) return std::nullopt;
  return rate;
}

std::optional<WayTimes> times_from(const std::string& line) {
  std::istringstream words(line);
  std::string way, strategy, scatter, word;
  words >> way >> strategy >> scatter;
  const auto kind = named<WayKind>(way, kWayKinds);
  const auto how =
      named<CombineStrategy>(strategy, static_cast<int>(CombineStrategy::kAllReduce) + 1);
  const auto where = named<Scatter>(scatter, static_cast<int>(Scatter::kOwner) + 1);
  if (!kind || !how || !where) return std::nullopt;
  WayTimes times{.way = {*kind, *how}, .scatter = *where, .times = {}};
  while (words >> word) {
    const std::optional<CombineTime> time = time_from(word);
    const bool rises = times.times.empty() || (time && times.times.back().bytes < time->bytes);
    if (!time || !rises) return std::nullopt;
    times.times.push_back(*time);
  }
  return times;
}

}  // namespace

std::string to_text(std::string_view key, const WayTable& table) {
  std::string text = fmt::format("{}{}\n", kTitle, key);
  if (table.read_gbs > 0) text += fmt::format("{}{:.2f}\n", kRead, table.read_gbs);
  for (const WayTimes& way : table.ways) {
    text += fmt::format("{} {} {}", name(way.way.way), name(way.way.strategy), name(way.scatter));
    for (const CombineTime& time : way.times) {
      text += fmt::format(" {:.0f}:{:.2f}", time.bytes, time.microseconds);
    }
    text += '\n';
  }
  return text + checksum_line(text);
}

std::optional<WayTable> table_from(std::string_view key, std::string_view text) {
  const std::string head = fmt::format("{}{}\n", kTitle, key);
  const std::size_t tail = checksum_line({}).size();
  if (!text.starts_with(head) || text.size() < head.size() + tail) return std::nullopt;
  const std::string_view summed = text.substr(0, text.size() - tail);
  if (text.substr(summed.size()) != checksum_line(summed)) return std::nullopt;
  WayTable table;
  std::istringstream lines{std::string(summed.substr(head.size()))};
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(kRead)) {
      const std::optional<double> rate = rate_from(line);
      if (!rate) return std::nullopt;
      table.read_gbs = *rate;
      continue;
    }
    std::optional<WayTimes> times = times_from(line);
    if (!times) return std::nullopt;
    table.ways.push_back(*std::move(times));
  }
  return table;
}

}  // namespace kvmesh
