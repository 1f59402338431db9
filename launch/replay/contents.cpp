#include "launch/replay/contents.hpp"

#include <algorithm>
#include <cstring>

#include "launch/verify/host_tensor.hpp"
#include "launch/verify/random.hpp"

namespace kvmesh::replay {
namespace {

// The rows [n, dim] as they lie in memory, without the gaps of a HostTensor.
std::vector<std::byte> packed(const std::vector<float>& rows, std::int64_t dim, Dtype dtype) {
  const std::int64_t count = std::ssize(rows) / dim;
  verify::HostTensor tensor(dtype, count, 1, dim);
  const TensorView view = tensor.view();
  const std::size_t row_bytes = static_cast<std::size_t>(dim) * size_bytes(dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>(count) * row_bytes);
  for (std::int64_t row = 0; row < count; ++row) {
    for (std::int64_t d = 0; d < dim; ++d)
      tensor.set(row, 0, d, rows[static_cast<std::size_t>(row * dim + d)]);
    const std::size_t from = static_cast<std::size_t>(row * view.stride(0)) * size_bytes(dtype);
    std::memcpy(bytes.data() + static_cast<std::size_t>(row) * row_bytes,
                static_cast<const std::byte*>(view.data) + from, row_bytes);
  }
  return bytes;
}

// The rows as pages of `dtype` keep them.
std::vector<float> stored(const std::vector<float>& rows, std::int64_t dim, Dtype dtype) {
  std::vector<float> all;
  all.reserve(rows.size());
  for (auto row = rows.begin(); row != rows.end(); row += dim) {
    const KvScales scales{.kind = ScaleKind::kPerTensor};
    const std::vector<float> kept = verify::stored_row({row, row + dim}, dtype, scales, scales.k);
    all.insert(all.end(), kept.begin(), kept.end());
  }
  return all;
}

}  // namespace

Contents::Contents(const AttendShape& shape, float query_scale)
    : shape_(shape), query_scale_(query_scale) {
  // A token whose keys begin in the last row needs the rows behind it, too.
  const std::int64_t rows = kRows + 2 * shape.kv_heads - 1;
  std::vector<float> numbers = verify::Random(1).reals(rows * shape.dim);
  for (float& number : numbers) number = verify::rounded_to(shape.input(), number);
  inputs_ = packed(numbers, shape.dim, shape.input());
  stored_ = replay::stored(numbers, shape.dim, shape.dtype);
  for (float& number : numbers) number *= query_scale;
  query_inputs_ = packed(numbers, shape.dim, shape.input());
  queries_ = std::move(numbers);
}

std::vector<TokenRow> Contents::tokens_of(const Trace& trace, const Growth& growth) const {
  const Request& request = trace.requests[growth.request];
  const std::int64_t end = growth.first + growth.count;
  const std::int64_t prompt = std::clamp(request.prompt_tokens, growth.first, end);
  std::vector<std::int32_t> tokens;
  if (prompt > growth.first) {
    const std::vector<std::int32_t> all = prompt_of(request);
    tokens.assign(all.begin() + growth.first, all.begin() + prompt);
  }
  const std::vector<std::int32_t> answer =
      answer_of(growth.request, prompt - request.prompt_tokens, end - prompt);
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  std::vector<TokenRow> rows;
  rows.reserve(tokens.size());
  for (std::int64_t position = growth.first; const std::int32_t token : tokens)
    rows.push_back(TokenRow((std::int64_t{token} * 31 + position++ * 7) % kRows));
  return rows;
}

std::size_t Contents::key_row(TokenRow token, int layer, int kv_head) const {
  const std::int64_t first =
      (static_cast<std::int64_t>(token) + std::int64_t{layer} * 1009) % kRows;
  return static_cast<std::size_t>(first + kv_head);
}

void Contents::add_rows(const std::vector<std::byte>& table, std::size_t row, int rows,
                        std::vector<std::byte>& to) const {
  const std::size_t bytes = static_cast<std::size_t>(shape_.dim) * size_bytes(shape_.input());
  const auto begin = table.begin() + static_cast<std::ptrdiff_t>(row * bytes);
  const auto size = static_cast<std::ptrdiff_t>(bytes) * rows;
  to.insert(to.end(), begin, begin + size);
}

void Contents::add_keys(TokenRow token, int layer, std::vector<std::byte>& to) const {
  add_rows(inputs_, key_row(token, layer, 0), shape_.kv_heads, to);
}

void Contents::add_values(TokenRow token, int layer, std::vector<std::byte>& to) const {
  add_rows(inputs_, value_row(token, layer, 0), shape_.kv_heads, to);
}

void Contents::add_query(std::size_t row, std::vector<std::byte>& to) const {
  add_rows(query_inputs_, row, 1, to);
}

}  // namespace kvmesh::replay
