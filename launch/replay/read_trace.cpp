#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "launch/replay/trace.hpp"

namespace kvmesh::replay {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";
// A prompt this long is no prompt; sums over all requests stay far below 2^63.
constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;
constexpr std::uint32_t kMostBlock = 1u << 31;
// The ids of kMostTokens tokens need up to 25 MB: 2^21 times "2147483647, ".
constexpr std::size_t kMostLineBytes = std::size_t{32} << 20;

std::int64_t blocks_for(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

// Throws what is wrong with a line; the caller adds where it is.
[[noreturn]] void refuse(std::string what) { throw TraceError(std::move(what)); }

std::int64_t checked_tokens(const char* name, std::int64_t tokens, std::int64_t least) {
  if (tokens < least || tokens > kMostTokens) {
    refuse(fmt::format("{} is {}, not in [{}, {}]", name, tokens, least, kMostTokens));
  }
  return tokens;
}

const Json& number(const Json& line, const char* name) {
  const auto found = line.find(name);
  if (found == line.end() || !found->is_number()) refuse(fmt::format("no number {}", name));
  return *found;
}

std::int64_t tokens(const Json& line, const char* name, std::int64_t least) {
  const Json& value = number(line, name);
  if (!value.is_number_integer()) refuse(fmt::format("{} is {}, no integer", name, value.dump()));
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > kMostTokens) {
    refuse(fmt::format("{} is {}, not in [{}, {}]", name, value.dump(), least, kMostTokens));
  }
  return checked_tokens(name, value.get<std::int64_t>(), least);
}

Request mooncake_request(const std::string& text) {
  const Json line = Json::parse(text, nullptr, false);
  if (!line.is_object()) refuse("no JSON object");
  Request request{.arrival_s = number(line, "timestamp").get<double>() / 1e3,
                  .prompt_tokens = tokens(line, "input_length", 1),
                  .answer_tokens = tokens(line, "output_length", 0),
                  .blocks = {}};
  const auto ids = line.find("hash_ids");
  if (ids == line.end() || !ids->is_array()) refuse("no list hash_ids");
  for (const Json& id : *ids) {
    // What is no number can be long, or nested deeper than dump() can go.
    if (!id.is_number())
      refuse(fmt::format("a hash id is no number: its type is {}", id.type_name()));
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= kMostBlock) {
      refuse(fmt::format("hash id {} is no number below 2^31", id.dump()));
    }
    request.blocks.push_back(id.get<std::uint32_t>());
  }
  if (std::ssize(request.blocks) != blocks_for(request.prompt_tokens)) {
    refuse(fmt::format("{} hash ids for {} tokens in blocks of {}", request.blocks.size(),
                       request.prompt_tokens, kBlockTokens));
  }
  return request;
}

// Takes the number at the front of `text`, and the separator after it.
template <class T>
T take_number(std::string_view& text, char separator) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  const bool ends = separator == '\0' ? text.empty() : text.starts_with(separator);
  if (error != std::errc{} || !ends) refuse("no date, time, and two numbers");
  if (!text.empty()) text.remove_prefix(1);
  return value;
}

// Takes "2023-11-16 18:17:03.9799600,". Returns the seconds since 1970.
double take_time(std::string_view& text) {
  const std::chrono::year year{take_number<int>(text, '-')};
  const std::chrono::month month{take_number<unsigned>(text, '-')};
  const std::chrono::year_month_day date{year, month,
                                         std::chrono::day{take_number<unsigned>(text, ' ')}};
  const int hour = take_number<int>(text, ':');
  const int minute = take_number<int>(text, ':');
  const auto second = take_number<double>(text, ',');
  const bool is_time = hour >= 0 && hour < 24 && minute >= 0 && minute < 60 && second >= 0 &&
                       second < 61;  // false for NaN
  if (!date.ok() || !is_time) refuse("no date and time");
  return std::chrono::duration<double>(std::chrono::sys_days(date).time_since_epoch()).count() +
         (hour * 60 + minute) * 60 + second;
}

// "2023-11-16 18:17:03.9799600,4808,10". Its blocks are left out.
Request azure_request(std::string_view text) {
  if (text.ends_with('\r')) text.remove_suffix(1);
  Request request{.arrival_s = take_time(text),
                  .prompt_tokens = take_number<std::int64_t>(text, ','),
                  .answer_tokens = take_number<std::int64_t>(text, '\0'),
                  .blocks = {}};
  checked_tokens("ContextTokens", request.prompt_tokens, 1);
  checked_tokens("GeneratedTokens", request.answer_tokens, 0);
  return request;
}

// As std::getline, for lines of at most kMostLineBytes.
bool next_line(std::istream& file, std::string& text) {
  text.clear();
  std::streambuf& buffer = *file.rdbuf();
  constexpr int kEnd = std::char_traits<char>::eof();
  int next = buffer.sbumpc();
  const bool is_there = next != kEnd;
  for (; next != kEnd && next != '\n'; next = buffer.sbumpc()) {
    if (text.size() == kMostLineBytes) {
      refuse(fmt::format("a line of more than {} MiB", kMostLineBytes >> 20));
    }
    text.push_back(static_cast<char>(next));
  }
  return is_there;
}

std::string stem_of(const std::string& path) {
  std::string name = path.substr(path.find_last_of('/') + 1);
  return name.substr(0, name.find_last_of('.'));
}

// Adds the requests of all lines; `line` is the one that is read.
void read_lines(std::istream& file, std::int64_t most_blocks, Trace& trace, std::int64_t& line) {
  std::int64_t blocks = 0;
  bool is_azure = false;
  for (std::string text; next_line(file, text); ++line) {
    if (line == 1 && text.starts_with(kAzureHeader)) {
      is_azure = true;
      continue;
    }
    if (text.empty() || text == "\r") continue;
    Request request = is_azure ? azure_request(text) : mooncake_request(text);
    const std::int64_t first = blocks;
    blocks += blocks_for(request.prompt_tokens);
    if (blocks > most_blocks) {
      refuse(fmt::format("up to here the prompts have {} blocks of {} tokens, more than {}", blocks,
                         kBlockTokens, most_blocks));
    }
    if (is_azure) {
      request.blocks.resize(static_cast<std::size_t>(blocks - first));
      std::iota(request.blocks.begin(), request.blocks.end(), static_cast<std::uint32_t>(first));
    }
    trace.requests.push_back(std::move(request));
  }
}

}  // namespace

Trace read_trace(const std::string& path, std::int64_t most_blocks) {
  if (std::filesystem::is_directory(path)) {
    throw TraceError(fmt::format("{}: is a folder, not a trace", path));
  }
  std::ifstream file(path);
  if (!file) throw TraceError(fmt::format("{}: cannot be read", path));
  Trace trace{.name = stem_of(path), .requests = {}};
  std::int64_t line = 1;
  try {
    read_lines(file, most_blocks, trace, line);
  } catch (const TraceError& error) {
    throw TraceError(fmt::format("{}:{}: {}", path, line, error.what()));
  }
  if (trace.requests.empty()) throw TraceError(fmt::format("{}: no request in it", path));
  std::ranges::stable_sort(trace.requests, {}, &Request::arrival_s);
  for (const double first = trace.requests.front().arrival_s; Request & request : trace.requests)
    request.arrival_s -= first;
  return trace;
}

}  // namespace kvmesh::replay
