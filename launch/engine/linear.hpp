// Linear layers: rows of a weight matrix times the activations of a batch of tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kvmesh/combine.hpp"
#include "kvmesh/thread_pool.hpp"
#include "launch/engine/matrix.hpp"

namespace kvmesh::engine {

/// y[t * y_stride + (r - rows.begin)] = sum over c of W[r][c] * x[t][c], for r in `rows`.
struct Product {
  const Matrix* weights = nullptr;
  IndexRange rows;
  float* y = nullptr;
  std::int64_t y_stride = 0;
};

/// Computes all products of the same x [tokens, cols] in one loop over the threads.
///
/// Weights are decoded to float32 and summed in float32 in an order that depends on the column
/// count alone: a row's result has the same bits whatever the row ranges, the threads and the other
/// tokens are.
/// @throws InvalidArgument if `x` is not [tokens, cols] of every product.
void multiply(std::span<const Product> products, std::span<const float> x, std::int64_t tokens,
              ThreadPool& threads);

/// Returns the instruction set that multiply() uses on this machine: "AVX3", "AVX2", ...
std::string_view linear_target();

}  // namespace kvmesh::engine
