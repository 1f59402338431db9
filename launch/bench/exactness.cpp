#include "launch/bench/exactness.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace kvmesh::bench {
namespace {

using Doubles = std::vector<double>;

double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                           : exponent == 31 ? (mantissa == 0 ? HUGE_VAL : std::nan(""))
                                            : std::ldexp(1024 + mantissa, exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

double float8_value(int bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  const double magnitude =
      std::ldexp(mantissa + (exponent == 0 ? 0 : 8), (exponent == 0 ? 1 : exponent) - 10);
  return bits >> 7 ? -magnitude : magnitude;
}

double value_of(const std::byte* at, Dtype dtype) {
  if (dtype == Dtype::kFloat8E4M3) return float8_value(std::to_integer<int>(*at));
  if (dtype == Dtype::kFloat32) {
    float value = 0;
    std::memcpy(&value, at, sizeof(value));
    return static_cast<double>(value);
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof(bits));
  if (dtype == Dtype::kFloat16) return half_value(bits);
  return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
}

// Reads `count` consecutive elements from element `first` on.
Doubles to_host(const ConstTensorView& view, std::int64_t first, std::int64_t count) {
  const std::size_t element = size_bytes(view.dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count) * element);
  copy_bytes(bytes.data(),
             static_cast<const std::byte*>(view.data) + first * static_cast<std::int64_t>(element),
             bytes.size());
  Doubles values;
  for (std::size_t i = 0; i < bytes.size(); i += element) {
    values.push_back(value_of(bytes.data() + i, view.dtype));
  }
  return values;
}

// Reads rows from element `first` on. Rows of latent pages are longer than their values.
Doubles rows_of(const ConstTensorView& pool, std::int64_t first, std::int64_t tokens) {
  const std::int64_t dim = pool.size(3), pitch = pool.stride(2);
  const Doubles values = to_host(pool, first, (tokens - 1) * pitch + dim);
  Doubles rows;
  for (auto row = values.begin(); std::ssize(rows) < tokens * dim;) {
    rows.insert(rows.end(), row, row + dim);
    if (std::ssize(rows) < tokens * dim) row += pitch;
  }
  return rows;
}

// Returns the scales of the first `tokens` rows of a page's head.
Doubles scales_of(const BasicRowScale<ConstTensorView>& scale, std::int64_t page, std::int64_t head,
                  std::int64_t tokens) {
  const ConstTensorView& each = scale.per_token;
  const auto rows = static_cast<std::size_t>(tokens);
  if (each.empty()) return Doubles(rows, static_cast<double>(scale.number));
  const std::int64_t first = page * each.stride(0) + head * each.stride(1);
  if (each.stride(2) == 0) return Doubles(rows, to_host(each, first, 1).front());
  return rows_of(each, first, tokens);
}

// [length, dim] of one head of a sequence, times the scales of its rows.
Doubles plane_of(Workload& workload, std::size_t sequence, const ConstTensorView& pool,
                 const BasicRowScale<ConstTensorView>& scale, std::int64_t head) {
  const std::int64_t page_size = pool.size(2), dim = pool.size(3);
  std::int64_t left = workload.lengths()[sequence];
  Doubles values;
  for (const PageId page : workload.cache().allocator().pages(workload.sequences()[sequence])) {
    const std::int64_t first = page.index() * pool.stride(0) + head * pool.stride(1);
    const std::int64_t tokens = std::min(left, page_size);
    Doubles rows = rows_of(pool, first, tokens);
    const Doubles factors = scales_of(scale, page.index(), head, tokens);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] *= factors[i / static_cast<std::size_t>(dim)];
    }
    values.insert(values.end(), rows.begin(), rows.end());
    left -= page_size;
  }
  return values;
}

// Attention to the keys at `seen`, where `score` turns a scaled product and a key into a score; a
// sink of -inf is none.
template <class Score>
Doubles attend(const Doubles& q, const Doubles& k, const Doubles& v,
               const std::vector<std::size_t>& seen, double sink, const Score& score) {
  const std::size_t k_dim = q.size(), v_dim = v.size() / (k.size() / k_dim);
  Doubles scores(seen.size()), out(v_dim);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    for (std::size_t d = 0; d < k_dim; ++d) scores[i] += q[d] * k[seen[i] * k_dim + d];
    scores[i] = score(scores[i] / std::sqrt(static_cast<double>(k_dim)), seen[i]);
  }
  const double most = std::max(std::ranges::max(scores), sink);
  double sum = std::exp(sink - most);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const double weight = std::exp(scores[i] - most);
    sum += weight;
    for (std::size_t d = 0; d < v_dim; ++d) out[d] += weight * v[seen[i] * v_dim + d];
  }
  for (double& value : out) value /= sum;
  return out;
}

// A NaN is larger than any number.
double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

double relative_error(const Doubles& got, const Doubles& expected) {
  double error = 0, largest = 0;
  for (std::size_t d = 0; d < expected.size(); ++d) {
    const double difference = std::abs(got[d] - expected[d]);
    error = larger(difference, error);
    largest = std::max(largest, std::abs(expected[d]));
  }
  return error / largest;
}

}  // namespace

double output_error(Workload& workload, const ConstTensorView& q, const ConstTensorView& out,
                    std::int64_t queries, const Seen& seen) {
  const std::span<const std::int64_t> lengths = workload.lengths();
  const auto longest =
      static_cast<std::size_t>(std::ranges::max_element(lengths) - lengths.begin());
  const std::int64_t before = newest(lengths.first(longest), queries);
  const std::int64_t length = lengths[longest], mine = std::min(queries, length);
  const ConstKvPool pool = seen.pool.value_or(workload.cache().pool(0));
  const std::int64_t kv_heads = pool.k.size(1), q_heads = q.size(1);
  const Doubles k = plane_of(workload, longest, pool.k, pool.k_scale, kv_heads - 1);
  const Doubles v = plane_of(workload, longest, pool.v, pool.v_scale, kv_heads - 1);
  double worst = 0;
  for (const std::int64_t query : {std::int64_t{0}, mine - 1}) {
    std::vector<std::size_t> keys;
    for (std::int64_t position = 0; position <= length - mine + query; ++position) {
      if (seen.sees && !seen.sees(longest, query, position)) continue;
      keys.push_back(static_cast<std::size_t>(position));
    }
    for (const std::int64_t head : {q_heads - q_heads / kv_heads, q_heads - 1}) {
      const std::int64_t row = (before + query) * q_heads + head;
      const double sink = seen.sinks.empty() ? -HUGE_VAL : to_host(seen.sinks, head, 1).front();
      const auto score = [&](double product, std::size_t key) {
        return seen.score ? seen.score(product, static_cast<int>(head), length - mine + query,
                                       static_cast<std::int64_t>(key))
                          : product;
      };
      const Doubles expected =
          attend(to_host(q, row * q.size(2), q.size(2)), k, v, keys, sink, score);
      const double error = relative_error(to_host(out, row * out.size(2), out.size(2)), expected);
      worst = larger(error, worst);
    }
  }
  return worst;
}

}  // namespace kvmesh::bench
