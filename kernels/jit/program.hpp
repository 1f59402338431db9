// The input of a compilation: a kernel's sources, its constants, its mods, the chip.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/jit/constants.hpp"
#include "kernels/jit/source_file.hpp"

namespace kvmesh::jit {

struct Program {
  std::span<const SourceFile> files{};  ///< all files that may be included, with `source`
  std::string source{};                 ///< the name of the file that holds the kernels
  Constants constants{};
  std::string mods{};                  ///< CUDA C++ before `source`: emit_cuda's text
  std::string architecture{};          ///< "sm_90a"
  std::vector<std::string> options{};  ///< more options for NVRTC
};

/// Returns the text for the compiler: constants, mods, and the inclusion of the source. @throws
/// InvalidArgument if no file has the name of the source.
std::string translation_unit(const Program& program);

/// All options for NVRTC.
std::vector<std::string> compiler_options(const Program& program);

/// The files, and the few standard headers that kernels may include as well: <cstdint>, so that
/// parameter structs are one text for host and device. (The real headers take longer to compile
/// than the kernels.)
std::vector<SourceFile> all_headers(const Program& program);

/// Identifies a program by everything that the result depends on.
struct ProgramKey {
  std::array<std::uint64_t, 2> bits{};
  friend auto operator<=>(const ProgramKey&, const ProgramKey&) = default;
};
/// `compiler` is the compiler's version. Hashes every text: microseconds for 100 KB. @throws
/// InvalidArgument as translation_unit does.
ProgramKey key_of(const Program& program, const std::string& compiler);
/// 32 hexadecimal digits.
std::string to_string(const ProgramKey& key);

}  // namespace kvmesh::jit
