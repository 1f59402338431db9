// Errors of the CUDA runtime as exceptions. Only for sources that are built with CUDA.
#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <source_location>
#include <string>
#include <string_view>

#include "kvmesh/error.hpp"

namespace kvmesh {

/// A call of the CUDA runtime failed. The message names the operation, the error, and the place.
class CudaError : public Error {
 public:
  CudaError(cudaError_t code, std::string_view operation, const std::source_location& where)
      : Error(fmt::format("{}: {} ({}), at {}:{}", operation, cudaGetErrorString(code),
                          cudaGetErrorName(code), where.file_name(), where.line())),
        code_(code),
        operation_(operation) {}

  cudaError_t cuda_code() const { return code_; }
  const std::string& operation() const { return operation_; }

 private:
  cudaError_t code_;
  std::string operation_;
};

/// @throws CudaError unless `status` is success. `operation` says what was tried ("allocating a
/// page pool"); by default it is the name of the calling function.
inline void check(cudaError_t status, std::string_view operation = {},
                  const std::source_location& where = std::source_location::current()) {
  if (status == cudaSuccess) return;
  // The runtime also keeps the error for the next call of cudaGetLastError: clear it, so that it is
  // reported once.
  static_cast<void>(cudaGetLastError());
  throw CudaError(status, operation.empty() ? where.function_name() : operation, where);
}

}  // namespace kvmesh
