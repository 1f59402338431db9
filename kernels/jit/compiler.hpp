// CUDA C++ to machine code while the program runs, by NVRTC. Needs no GPU.
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
  std::string log{};  ///< the compiler's: resources and warnings

  std::vector<KernelResources> resources() const { return read_resources(log); }
};

/// Tells compilers apart that may give different machine code: "NVRTC 13.0, build 65be0d...". The
/// build id of the library says what the number does not, as updates of a toolkit share it.
std::string compiler_version();

/// Takes tenths of a second for an attention kernel. Any number of threads may compile at once.
/// @throws CompileError; InvalidArgument if the source is not among the files.
Cubin compile(const Program& program);

/// The program in the portable assembly that its machine code is made from. Compiles it, though not
/// all the way. @throws as `compile` does.
std::string ptx_of(const Program& program);

}  // namespace kvmesh::jit
