#include "launch/engine/linear.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kvmesh/error.hpp"
#include "launch/engine/linear_kernels.hpp"

namespace kvmesh::engine {
namespace {

/// Each thread gets about this many ranges: enough to even out a thread that the system delays.
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

/// Groups [begin, end) of all rows of all products, one after the other. `ends[i]` is the end of
/// product i's.
void multiply_groups(std::span<const Product> products, std::span<const std::int64_t> ends,
                     const float* x, std::int64_t tokens, std::int64_t begin, std::int64_t end) {
  for (std::size_t i = 0; i < products.size(); ++i) {
    const std::int64_t first = i == 0 ? 0 : ends[i - 1];
    const std::int64_t begin_group = std::max(begin, first) - first;
    const std::int64_t end_group = std::min(end, ends[i]) - first;
    if (begin_group >= end_group) continue;
    const Product& product = products[i];
    const IndexRange rows{begin_group * kRowGroup,
                          std::min(end_group * kRowGroup, product.rows.size())};
    multiply_rows({.weights = *product.weights,
                   .first_row = product.rows.begin + rows.begin,
                   .rows = rows.size(),
                   .x = x,
                   .tokens = tokens,
                   .y = product.y + rows.begin,
                   .y_stride = product.y_stride});
  }
}

}  // namespace

void multiply(std::span<const Product> products, std::span<const float> x, std::int64_t tokens,
              ThreadPool& threads) {
  // Groups of rows share the loads of x.
  std::vector<std::int64_t> ends;
  std::int64_t groups = 0;
  for (const Product& product : products) {
    check(product, x, tokens);
    groups += (product.rows.size() + kRowGroup - 1) / kRowGroup;
    ends.push_back(groups);
  }
  const std::int64_t ranges = threads.threads() == 1 ? 1 : threads.threads() * kRangesPerThread;
  const std::int64_t size = std::max<std::int64_t>(1, (groups + ranges - 1) / ranges);
  threads.for_each((groups + size - 1) / size, [&](std::int64_t range, int) {
    multiply_groups(products, ends, x.data(), tokens, range * size,
                    std::min(groups, (range + 1) * size));
  });
}

}  // namespace kvmesh::engine
