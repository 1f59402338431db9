#include "kernels/jit/resources.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace kvmesh::jit {
namespace {

/// Returns the number right before `unit`, or 0: "Used 96 registers", "0 bytes spill stores".
int number_before(std::string_view line, std::string_view unit) {
  const std::size_t end = line.find(unit);
  if (end == std::string_view::npos) return 0;
  std::size_t begin = end;
  while (begin > 0 && line[begin - 1] >= '0' && line[begin - 1] <= '9') --begin;
  int value = 0;
  std::from_chars(line.data() + begin, line.data() + end, value);
  return value;
}

/// Returns the text between the first two quotes after `words`, or nothing.
std::string_view quoted_after(std::string_view line, std::string_view words) {
  const std::size_t at = line.find(words);
  if (at == std::string_view::npos) return {};
  const std::size_t begin = line.find('\'', at);
  if (begin == std::string_view::npos) return {};
  return line.substr(begin + 1, line.find('\'', begin + 1) - begin - 1);
}

/// Reads a line of the log after the one that named the kernel.
void read_line(std::string_view line, KernelResources& kernel) {
  if (line.find("bytes stack frame") != std::string_view::npos) {
    kernel.stack_bytes = std::max(kernel.stack_bytes, number_before(line, " bytes stack frame"));
    kernel.spill_store_bytes += number_before(line, " bytes spill stores");
    kernel.spill_load_bytes += number_before(line, " bytes spill loads");
  } else if (line.find("Used ") != std::string_view::npos) {
    kernel.registers = number_before(line, " registers");
    kernel.shared_bytes = number_before(line, " bytes smem");
    kernel.stack_bytes =
        std::max(kernel.stack_bytes, number_before(line, " bytes cumulative stack size"));
  }
}

}  // namespace

std::string to_string(const KernelResources& resources) {
  return fmt::format(
      "{}: {} registers, {} bytes of stack, {} and {} bytes of spill stores and loads, {} bytes of "
      "static shared memory",
      resources.name, resources.registers, resources.stack_bytes, resources.spill_store_bytes,
      resources.spill_load_bytes, resources.shared_bytes);
}

std::vector<KernelResources> read_resources(std::string_view log) {
  std::vector<KernelResources> kernels;
  while (!log.empty()) {
    const std::string_view line = log.substr(0, log.find('\n'));
    log.remove_prefix(std::min(log.size(), line.size() + 1));
    const std::string_view name = quoted_after(line, "Compiling entry function");
    if (!name.empty()) {
      kernels.push_back({.name = std::string(name)});
    } else if (!kernels.empty()) {
      read_line(line, kernels.back());
    }
  }
  return kernels;
}

}  // namespace kvmesh::jit
