#include "kernels/cpu/copy.hpp"

#include <cmath>
#include <cstring>

#include "core/numbers/half.hpp"
#include "kernels/pool_checks.hpp"

namespace kvmesh::cpu {
namespace {

const std::byte* at(const ConstTensorView& view, std::int64_t offset) {
  return static_cast<const std::byte*>(view.data) +
         offset * static_cast<std::int64_t>(size_bytes(view.dtype));
}
std::byte* at(const TensorView& view, std::int64_t offset) {
  return static_cast<std::byte*>(view.data) +
         offset * static_cast<std::int64_t>(size_bytes(view.dtype));
}

void convert_row(std::byte* to, Dtype to_dtype, const std::byte* from, Dtype from_dtype,
                 std::int64_t dim) {
  with_element(to_dtype, [&]<class To>(To) {
    with_element(from_dtype, [&]<class From>(From) {
      auto* target = reinterpret_cast<typename To::Stored*>(to);
      const auto* source = reinterpret_cast<const typename From::Stored*>(from);
      for (std::int64_t d = 0; d < dim; ++d) target[d] = To::store(From::load(source[d]));
    });
  });
}

void copy_row(std::byte* to, Dtype to_dtype, const std::byte* from, Dtype from_dtype,
              std::int64_t dim) {
  if (to_dtype == from_dtype) {
    std::memcpy(to, from, static_cast<std::size_t>(dim) * size_bytes(to_dtype));
  } else {
    convert_row(to, to_dtype, from, from_dtype, dim);
  }
}

// The largest magnitude of a row that counts for its scale.
float largest_of(const std::byte* row, Dtype dtype, std::int64_t dim) {
  return with_element(dtype, [&]<class Element>(Element) {
    const auto* elements = reinterpret_cast<const typename Element::Stored*>(row);
    float largest = 0.0f;
    for (std::int64_t d = 0; d < dim; ++d) {
      const float size = std::abs(Element::load(elements[d]));
      if (is_finite_size(size) && size > largest) largest = size;
    }
    return largest;
  });
}

void quantize_row(std::byte* to, float scale, const std::byte* from, Dtype from_dtype,
                  std::int64_t dim) {
  with_element(from_dtype, [&]<class Element>(Element) {
    const auto* source = reinterpret_cast<const typename Element::Stored*>(from);
    for (std::int64_t d = 0; d < dim; ++d) {
      to[d] = std::byte{float_to_float8(Element::load(source[d]) / scale)};
    }
  });
}

std::int64_t place(const TensorView& plane, const TokenSlot& slot, std::int64_t head) {
  return slot.page * plane.stride(0) + head * plane.stride(1) + slot.offset * plane.stride(2);
}

// Returns the scale of a row to be written, which is computed and stored if each row has its own.
float row_scale(const BasicRowScale<TensorView>& scale, const TokenSlot& slot, std::int64_t head,
                const std::byte* row, Dtype dtype, std::int64_t dim) {
  if (scale.per_token.empty()) return scale.number;
  float& stored = static_cast<float*>(scale.per_token.data)[place(scale.per_token, slot, head)];
  if (!is_per_head(scale.per_token)) stored = float8_scale(largest_of(row, dtype, dim));
  return stored;
}

// Writes row `token` of `fresh` to `slot` of half a pool.
void write_token(const TensorView& pool, const BasicRowScale<TensorView>& scale,
                 const ConstTensorView& fresh, std::int64_t token, const TokenSlot& slot) {
  const std::int64_t dim = pool.size(3);
  for (std::int64_t head = 0; head < pool.size(1); ++head) {
    std::byte* const to = at(pool, place(pool, slot, head));
    const std::byte* const from = at(fresh, token * fresh.stride(0) + head * fresh.stride(1));
    if (pool.dtype != Dtype::kFloat8E4M3) {
      copy_row(to, pool.dtype, from, fresh.dtype, dim);
      continue;
    }
    quantize_row(to, row_scale(scale, slot, head, from, fresh.dtype, dim), from, fresh.dtype, dim);
  }
}

}  // namespace

void write_tokens(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                  std::span<const TokenSlot> slots, ThreadPool& threads) {
  threads.for_each(std::ssize(slots), [&](std::int64_t token, int) {
    const TokenSlot& slot = slots[static_cast<std::size_t>(token)];
    if (slot.page < 0) return;
    write_token(pool.k, pool.k_scale, k, token, slot);
    if (!pool.is_latent()) write_token(pool.v, pool.v_scale, v, token, slot);
  });
}

void copy_page(const TensorView& pool, const LocalPageCopy& copy) {
  for (std::int64_t head = 0; head < pool.size(1); ++head) {
    for (std::int64_t token = 0; token < copy.tokens; ++token) {
      const std::int64_t row = head * pool.stride(1) + token * pool.stride(2);
      copy_row(at(pool, copy.destination * pool.stride(0) + row), pool.dtype,
               at(pool, copy.source * pool.stride(0) + row), pool.dtype, pool.size(3));
    }
  }
}

}  // namespace kvmesh::cpu
