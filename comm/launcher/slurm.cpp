#include "comm/launcher/slurm.hpp"

#include <charconv>

namespace kvmesh {
namespace {

// Takes a number off the front of `text`.
std::optional<int> take_number(std::string_view& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || value < 0) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

}  // namespace

// A name ends at the first comma outside of brackets. A bracket stands for its first number, with
// the zeros before it.
std::string first_slurm_host(std::string_view nodes) {
  std::string host;
  bool in_brackets = false;
  bool is_first = true;  // within the brackets, up to the end of their first number
  for (const char c : nodes) {
    if (c == '[') {
      in_brackets = is_first = true;
    } else if (c == ']') {
      in_brackets = false;
    } else if (in_brackets) {
      is_first = is_first && c != '-' && c != ',';
      if (is_first) host += c;
    } else if (c == ',') {
      break;
    } else {
      host += c;
    }
  }
  return host;
}

std::optional<int> slurm_tasks_on_node(std::string_view tasks, int node) {
  while (true) {
    const std::optional<int> count = take_number(tasks);
    if (!count) return std::nullopt;
    int nodes = 1;
    if (take(tasks, "(x")) {
      const std::optional<int> times = take_number(tasks);
      if (!times || !take(tasks, ")")) return std::nullopt;
      nodes = *times;
    }
    if (node < nodes) return count;
    node -= nodes;
    if (!take(tasks, ",")) return std::nullopt;
  }
}

}  // namespace kvmesh
