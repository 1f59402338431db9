#include "kernels/cpu/copy.hpp"

#include <cstring>

#include "core/half.hpp"

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

}  // namespace

void write_token(const TensorView& pool, const ConstTensorView& fresh, std::int64_t token,
                 const TokenSlot& slot) {
  for (std::int64_t head = 0; head < pool.size(1); ++head) {
    copy_row(
        at(pool, slot.page * pool.stride(0) + head * pool.stride(1) + slot.offset * pool.stride(2)),
        pool.dtype, at(fresh, token * fresh.stride(0) + head * fresh.stride(1)), fresh.dtype,
        pool.size(3));
  }
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
