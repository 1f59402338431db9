#include "launch/engine/linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kvmesh/error.hpp"
#include "launch/engine/linear_kernels.hpp"

namespace kvmesh::engine {
namespace {

/// Each thread gets about this many ranges: enough to even out a thread that the system holds up.
constexpr std::int64_t kRangesPerThread = 4;

void check(const Product& product, std::span<const float> x, std::int64_t tokens) {
  const Matrix& w = *product.weights;
  const bool fits = tokens >= 1 && x.size() == static_cast<std::size_t>(tokens * w.cols) &&
                    product.rows.begin >= 0 && product.rows.begin <= product.rows.end &&
                    product.rows.end <= w.rows && product.y_stride >= product.rows.size();
  if (fits) return;
  throw InvalidArgument(
      fmt::format("rows {}..{} of a {} x {} matrix do not fit {} tokens with {} activations",
                  product.rows.begin, product.rows.end, w.rows, w.cols, tokens, x.size()));
}

}  // namespace

void multiply(std::span<const Product> products, std::span<const float> x, std::int64_t tokens,
              Workers& workers) {
  // All rows of all products, one after the other, in groups that share the loads of x.
  std::vector<std::int64_t> ends;
  std::int64_t groups = 0;
  for (const Product& product : products) {
    check(product, x, tokens);
    groups += (product.rows.size() + kRowGroup - 1) / kRowGroup;
    ends.push_back(groups);
  }
  const std::int64_t ranges = workers.threads() == 1 ? 1 : workers.threads() * kRangesPerThread;
  workers.for_ranges(groups, (groups + ranges - 1) / ranges,
                     [&](std::int64_t at, std::int64_t end) {
                       for (std::size_t i = 0; i < products.size(); ++i) {
                         const std::int64_t first = i == 0 ? 0 : ends[i - 1];
                         const std::int64_t begin_group = std::max(at, first) - first;
                         const std::int64_t end_group = std::min(end, ends[i]) - first;
                         if (begin_group >= end_group) continue;
                         const Product& product = products[i];
                         const Share rows{begin_group * kRowGroup,
                                          std::min(end_group * kRowGroup, product.rows.size())};
                         multiply_rows({.weights = *product.weights,
                                        .first_row = product.rows.begin + rows.begin,
                                        .rows = rows.size(),
                                        .x = x.data(),
                                        .tokens = tokens,
                                        .y = product.y + rows.begin,
                                        .y_stride = product.y_stride});
                       }
                     });
}

}  // namespace kvmesh::engine
