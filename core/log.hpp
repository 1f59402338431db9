// Writes lines for people. A library does not own standard error, so the program can take them.
#pragma once

#include <string>

#include "kvmesh/log.hpp"

namespace kvmesh {

/// Writes one line to the function of set_log, or to standard error after the library's name.
void log_line(const std::string& line) noexcept;

}  // namespace kvmesh
