// Compiles CUDA C++ to machine code while the program runs, by NVRTC. Needs no GPU.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/jit/program.hpp"
#include "kernels/jit/resources.hpp"
#include "kvmesh/error.hpp"

namespace kvmesh::jit {

/// The compiler refused a program. The message holds its log.
class CompileError : public Error {
 public:
  CompileError(const std::string& source, const std::string& reason, std::string log);
  const std::string& log() const { return log_; }

 private:
  std::string log_;
};

/// Machine code for one architecture.
struct Cubin {
  std::vector<std::byte> bytes{};
  std::string log{};  ///< the compiler's log: resources and warnings

  std::vector<KernelResources> resources() const { return read_resources(log); }
};

/// Identifies the compiler: "NVRTC 13.0, build 65be0d...". The build id distinguishes updates of a
/// toolkit that share the version number but may give different machine code.
std::string compiler_version();

/// Takes tenths of a second for an attention kernel. Any number of threads may compile at once.
/// @throws CompileError; InvalidArgument if the source is not among the files.
Cubin compile(const Program& program);

/// Returns the program in the portable assembly (PTX) that its machine code is made from. Compiles
/// it, but not to machine code. @throws as `compile` does.
std::string ptx_of(const Program& program);

}  // namespace kvmesh::jit
