// PyTorch's paged attention on poisoned caches, with the float64 answer beside it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "kvmesh/error.hpp"
#include "kvmesh/paged_attention.hpp"
#include "tests/support/owned_tensor.hpp"
#include "tests/support/random.hpp"
#include "tests/support/reference.hpp"

namespace kvmesh::test {

/// Bound on the error of O, relative to the largest |O| of the case, and of the LSE, relative to
/// max(1, |LSE|).
inline constexpr double kTolerance = 1e-5;

struct PagedShape {
  std::int64_t pages = 100;
  int page_size = 16;
  int rows = 4;
  int q_heads = 6, kv_heads = 6;
  int k_dim = 64, v_dim = 64;
  Dtype dtype = Dtype::kFloat32;
};

struct PagedLayouts {
  Layout query{}, cache{}, values{}, out{};
};

struct PagedResult {
  OwnedTensor out, lse;  // [B, H, Q_LEN, V_D], [B, H, Q_LEN]
};

class PagedCase {
 public:
  explicit PagedCase(const PagedShape& shape, const PagedLayouts& layouts = {},
                     std::uint64_t seed = 1);
  /// On the ranks of `mesh`; with caches of this rank's pages alone if `share`.
  PagedCase(Mesh& mesh, const PagedShape& shape, Placement placement, bool share);

  /// Reserves `length` tokens in row `row` and assigns random keys and values to positions
  /// [begin, length), all at once.
  void assign(int row, std::int64_t length, std::int64_t begin = 0);
  void erase(int row);
  /// New random queries [batch, q_heads, q_len, k_dim].
  OwnedTensor query(std::int64_t batch, std::int64_t q_len);

  PagedResult forward(OwnedTensor& query, const std::vector<std::int64_t>& kv_lens,
                      PagedAttention::ForwardOptions options = {});

  /// The expected output of `matches`: query i of each row is at position first + i.
  struct Expected {
    MaskMod mask = mods::causal();
    std::int64_t first_position = 0;
    double tolerance = kTolerance;
  };
  /// Compares out and LSE with float64 over the rows' tokens.
  testing::AssertionResult matches(const PagedResult& result, const OwnedTensor& query,
                                   const std::vector<std::int64_t>& kv_lens,
                                   const PagedAttention::ForwardOptions& options,
                                   const Expected& expected) const;
  testing::AssertionResult matches(const PagedResult& result, const OwnedTensor& query,
                                   const std::vector<std::int64_t>& kv_lens,
                                   const PagedAttention::ForwardOptions& options = {}) const {
    return matches(result, query, kv_lens, options, Expected{});
  }

  PagedShape shape;
  PagedLayouts layouts{};
  Random random;
  PagedAttention paged;
  OwnedTensor k_cache, v_cache;      // [1, H, pages * page_size, D]
  std::vector<DenseSequence> dense;  // by row
};

}  // namespace kvmesh::test
