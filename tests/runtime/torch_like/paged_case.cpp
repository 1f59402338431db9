#include "tests/runtime/torch_like/paged_case.hpp"

#include <algorithm>

namespace kvmesh::test {
namespace {

// The first `length` tokens of a row.
DenseSequence head_of(const DenseSequence& row, std::int64_t length) {
  DenseSequence head = row;
  head.k.resize(static_cast<std::size_t>(length * row.kv_heads * row.k_dim));
  head.v.resize(static_cast<std::size_t>(length * row.kv_heads * row.v_dim));
  return head;
}

// A number as stored in the cache.
float stored(float value, Dtype dtype) {
  std::uint32_t bits = 0;
  store_element(&bits, dtype, 0, value);
  return load_element(&bits, dtype, 0);
}

OwnedTensor cache_of(const PagedShape& shape, std::int64_t pages, int dim, Layout layout) {
  return OwnedTensor(shape.dtype, {1, shape.kv_heads, pages * shape.page_size, dim}, layout);
}

std::vector<DenseSequence> empty_rows(const PagedShape& shape) {
  DenseSequence empty;
  empty.kv_heads = shape.kv_heads;
  empty.k_dim = shape.k_dim;
  empty.v_dim = shape.v_dim;
  return std::vector<DenseSequence>(static_cast<std::size_t>(shape.rows), empty);
}

}  // namespace

PagedCase::PagedCase(const PagedShape& sizes, const PagedLayouts& how, std::uint64_t seed)
    : shape(sizes),
      layouts(how),
      random(seed),
      paged(sizes.pages, sizes.page_size, sizes.rows),
      k_cache(cache_of(sizes, sizes.pages, sizes.k_dim, how.cache)),
      v_cache(cache_of(sizes, sizes.pages, sizes.v_dim, how.cache)),
      dense(empty_rows(sizes)) {}

PagedCase::PagedCase(Mesh& mesh, const PagedShape& sizes, Placement placement, bool share)
    : shape(sizes),
      random(1),
      paged(mesh, sizes.pages, sizes.page_size, sizes.rows, placement),
      k_cache(cache_of(sizes, share ? paged.pages_per_rank() : sizes.pages, sizes.k_dim, {})),
      v_cache(cache_of(sizes, share ? paged.pages_per_rank() : sizes.pages, sizes.v_dim, {})),
      dense(empty_rows(sizes)) {}

void PagedCase::assign(int row, std::int64_t length, std::int64_t begin) {
  paged.reserve(row, length);
  const std::int64_t tokens = length - begin;
  OwnedTensor k(Dtype::kFloat32, {1, shape.kv_heads, tokens, shape.k_dim}, layouts.values);
  OwnedTensor v(Dtype::kFloat32, {1, shape.kv_heads, tokens, shape.v_dim}, layouts.values);
  DenseSequence& sequence = dense[static_cast<std::size_t>(row)];
  sequence = head_of(sequence, length);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
      for (std::int64_t d = 0; d < shape.k_dim; ++d) k.set(random.real(), 0, h, t, d);
      for (std::int64_t d = 0; d < shape.v_dim; ++d) v.set(random.real(), 0, h, t, d);
    }
  }
  // In a second pass: a broadcast dimension has the value written last.
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t h = 0; h < shape.kv_heads; ++h) {
      const std::int64_t at = (begin + t) * shape.kv_heads + h;
      for (std::int64_t d = 0; d < shape.k_dim; ++d) {
        sequence.k[static_cast<std::size_t>(at * shape.k_dim + d)] =
            stored(k.at(0, h, t, d), shape.dtype);
      }
      for (std::int64_t d = 0; d < shape.v_dim; ++d) {
        sequence.v[static_cast<std::size_t>(at * shape.v_dim + d)] =
            stored(v.at(0, h, t, d), shape.dtype);
      }
    }
  }
  std::vector<std::int64_t> positions(static_cast<std::size_t>(tokens));
  std::iota(positions.begin(), positions.end(), begin);
  paged.assign(std::vector{row}, positions, k.view(), v.view(), k_cache.view(), v_cache.view());
}

void PagedCase::erase(int row) {
  paged.erase(row);
  DenseSequence& sequence = dense[static_cast<std::size_t>(row)];
  sequence = head_of(sequence, 0);
}

OwnedTensor PagedCase::query(std::int64_t batch, std::int64_t q_len) {
  OwnedTensor query(Dtype::kFloat32, {batch, shape.q_heads, q_len, shape.k_dim}, layouts.query);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < shape.q_heads; ++h) {
      for (std::int64_t i = 0; i < q_len; ++i) {
        for (std::int64_t d = 0; d < shape.k_dim; ++d) query.set(3.0f * random.real(), b, h, i, d);
      }
    }
  }
  return query;
}

PagedResult PagedCase::forward(OwnedTensor& query, const std::vector<std::int64_t>& kv_lens,
                               PagedAttention::ForwardOptions options) {
  const std::int64_t batch = query.size(0), q_len = query.size(2);
  PagedResult result{
      OwnedTensor(Dtype::kFloat32, {batch, shape.q_heads, q_len, shape.v_dim}, layouts.out),
      OwnedTensor(Dtype::kFloat32, {batch, shape.q_heads, q_len})};
  options.lse = result.lse.view();
  options.enable_gqa |= shape.q_heads != shape.kv_heads;
  paged.forward(query.view(), k_cache.view(), v_cache.view(), kv_lens, result.out.view(), options);
  return result;
}

testing::AssertionResult PagedCase::matches(const PagedResult& result, const OwnedTensor& query,
                                            const std::vector<std::int64_t>& kv_lens,
                                            const PagedAttention::ForwardOptions& options,
                                            const Expected& expected) const {
  const double scale = options.scale ? double{*options.scale} : 1 / std::sqrt(double(shape.k_dim));
  double largest = 0, worst_o = 0, worst_lse = 0;
  const auto differ = [](double a, double b) { return a == b ? 0.0 : std::abs(a - b); };
  const auto keep_worst = [](double& worst, double error) {
    if (!(error <= worst)) worst = error;  // a NaN is the worst
  };
  for (std::int64_t b = 0; b < query.size(0); ++b) {
    const auto i = static_cast<std::size_t>(b);
    const int row = options.batch_indices.empty() ? static_cast<int>(b) : options.batch_indices[i];
    const DenseSequence keys = head_of(dense[static_cast<std::size_t>(row)], kv_lens[i]);
    for (std::int64_t h = 0; h < shape.q_heads; ++h) {
      for (std::int64_t t = 0; t < query.size(2); ++t) {
        std::vector<float> q;
        for (std::int64_t d = 0; d < shape.k_dim; ++d) q.push_back(query.at(b, h, t, d));
        const ReferenceRow wanted = reference_row(
            keys, q.data(), scale, expected.mask, options.score_mod, static_cast<std::int32_t>(b),
            static_cast<std::int32_t>(h), shape.q_heads / shape.kv_heads,
            static_cast<std::int32_t>(expected.first_position + t));
        for (std::int64_t d = 0; d < shape.v_dim; ++d) {
          const double o = wanted.o[static_cast<std::size_t>(d)];
          largest = std::max(largest, std::abs(o));
          keep_worst(worst_o, differ(result.out.at(b, h, t, d), o));
        }
        keep_worst(worst_lse, differ(result.lse.at(b, h, t), wanted.lse) /
                                  std::max(1.0, std::abs(wanted.lse)));
      }
    }
  }
  if (worst_o <= expected.tolerance * largest && worst_lse <= expected.tolerance)
    return testing::AssertionSuccess();
  return testing::AssertionFailure()
         << "error of O " << worst_o << " (largest " << largest << "), of the LSE " << worst_lse;
}

}  // namespace kvmesh::test
