// Moving keys and values: one token into its slot, one page to another.
#pragma once

#include <cstdint>

#include "kvmesh/attention.hpp"

namespace kvmesh::cpu {

/// Row `token` of `fresh` [tokens, kv_heads, dim] to `slot` of `pool`, converting the dtype. Float8
/// rows are divided by their scale, which is written, too, if each row has its own.
void write_token(const TensorView& pool, const BasicRowScale<TensorView>& scale,
                 const ConstTensorView& fresh, std::int64_t token, const TokenSlot& slot);

/// The first `copy.tokens` tokens of a page, for every kv head.
void copy_page(const TensorView& pool, const LocalPageCopy& copy);

}  // namespace kvmesh::cpu
