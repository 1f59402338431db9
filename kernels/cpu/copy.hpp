// Copies keys and values: new tokens into their slots, one page to another.
#pragma once

#include <span>

#include "kvmesh/attention.hpp"

namespace kvmesh::cpu {

/// Copies rows [slots.size(), kv_heads, dim] to their slots and converts the dtype; slots of page
/// -1 take none. Divides float8 rows by their scale, and also writes the scale if each row has its
/// own. REQUIRES: arguments that `append` takes.
void write_tokens(const KvPool& pool, const ConstTensorView& k, const ConstTensorView& v,
                  std::span<const TokenSlot> slots, ThreadPool& threads);

/// Copies the first `copy.tokens` tokens of a page, for every kv head.
void copy_page(const TensorView& pool, const LocalPageCopy& copy);

}  // namespace kvmesh::cpu
