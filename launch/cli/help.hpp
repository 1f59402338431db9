// How `--help` looks.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace CLI {
class FormatterBase;
}

namespace kvmesh::launch {

/// Breaks a text at spaces into lines of at most `width` characters, if its words are no longer.
std::string broken_into_lines(std::string_view text, std::size_t width);

/// CLI11's formatter, with descriptions in lines that a terminal shows whole.
std::shared_ptr<CLI::FormatterBase> help_formatter();

}  // namespace kvmesh::launch
