// Copies keys and values: one token into its slot, one page to another.
#pragma once

#include <cstdint>

#include "kvmesh/attention.hpp"

namespace kvmesh::cpu {

/// Copies row `token` of `fresh` [tokens, kv_heads, dim] to `slot` of `pool` and converts the
/// dtype. Divides float8 rows by their scale, and also writes the scale if each row has its own.
void write_token(const TensorView& pool, const BasicRowScale<TensorView>& scale,
                 const ConstTensorView& fresh, std::int64_t token, const TokenSlot& slot);

/// Copies the first `copy.tokens` tokens of a page, for every kv head.
void copy_page(const TensorView& pool, const LocalPageCopy& copy);

}  // namespace kvmesh::cpu
