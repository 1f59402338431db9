// Compiled programs, written out for people to read.
#pragma once

#include <atomic>
#include <filesystem>

#include "kernels/jit/compiler.hpp"

namespace kvmesh::jit {

/// $KVMESH_DUMP; empty without it: nothing is dumped.
std::filesystem::path default_dump_directory();

/// Writes all information about a program into a folder. The files begin with the stem of the
/// kernel's source and the program's key: decode-0123456789abcdef0123456789abcdef, then
///
///   .cu     the text that the compiler was given: constants, mods, inclusion of the source
///   .ptx    from a second compilation, which stops there
///   .cubin  the machine code alone, as nvdisasm and cuobjdump read it
///   .sass   its instructions, if one of these two is found
///   .txt    the kernels' resources, the compiler's options and log; written last
///
/// Each file is renamed into place when it is complete, so any number of ranks and threads may
/// write the same ones. A failure logs a line, and nothing else.
class Dump {
 public:
  /// With an empty path it writes nothing.
  explicit Dump(std::filesystem::path directory = default_dump_directory());

  /// Makes the folder and writes the files of a program whose machine code is `cubin`, replacing
  /// older ones. The first failure of this Dump is logged. Blocks for tenths of a
  /// second, and for up to two minutes if the disassemblers hang.
  void write(const Program& program, const ProgramKey& key, const Cubin& cubin) noexcept;

 private:
  std::filesystem::path directory_;
  std::atomic_flag has_warned_{};
};

}  // namespace kvmesh::jit
