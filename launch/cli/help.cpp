#include "launch/cli/help.hpp"

#include <CLI/CLI.hpp>

namespace kvmesh::launch {
namespace {

constexpr std::size_t kNames = 28;         // columns of options, before their descriptions
constexpr std::size_t kDescriptions = 72;  // 100 together

class Formatter final : public CLI::Formatter {
 public:
  Formatter() { column_width(kNames); }
  std::string make_option_desc(const CLI::Option* option) const override {
    return broken_into_lines(CLI::Formatter::make_option_desc(option), kDescriptions);
  }
};

}  // namespace

std::string broken_into_lines(std::string_view text, std::size_t width) {
  std::string lines;
  while (text.size() > width) {
    std::size_t space = text.rfind(' ', width);
    if (space == std::string_view::npos) space = text.find(' ');
    if (space == std::string_view::npos) break;
    lines.append(text.substr(0, space)).push_back('\n');
    text.remove_prefix(space + 1);
  }
  return lines.append(text);
}

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<Formatter>(); }

}  // namespace kvmesh::launch
