// A partial: what attention over a subset of the keys leaves behind.
#pragma once

#include "kvmesh/tensor.hpp"

namespace kvmesh {

/// The base of a log-sum-exp. Two partials merge only if they agree, so the base is in the type.
enum class LogBase { kNatural, kTwo };

/// (O, LSE) of the same rows over a subset of their keys. A row is one (query token, query head).
///
/// `o`    [tokens, q_heads, v_dim] float32: the output, normalised over the subset.
/// `lse`  [tokens, q_heads] float32: log of the sum of exp of the scaled, modified scores.
/// An empty subset has O = 0 and LSE = -inf. The views may be strided (last dimension of `o`
/// contiguous) and are not owned.
template <LogBase Base>
struct BasicPartial {
  TensorView o{};
  TensorView lse{};
};

/// What crosses every public boundary: natural log.
using Partial = BasicPartial<LogBase::kNatural>;

/// For kernels of an engine's own that work with exp2; kvmesh's own give natural logarithms.
/// `to_natural` is the only way from it to a `Partial`.
using Base2Partial = BasicPartial<LogBase::kTwo>;

/// Rescales the LSE in place (natural = base two · ln 2) and returns the same views, retyped. On
/// the CPU. @throws InvalidArgument for what is no partial there.
Partial to_natural(const Base2Partial& partial);

/// Merges `source` into `destination`, row by row: the exact partial over the union of two disjoint
/// subsets of keys. Source: the LSE merge of FlashAttention's split-KV (Dao et al., 2022).
/// On the CPU. @throws InvalidArgument if the shapes differ, or for what is no partial there.
void merge_into(const Partial& destination, const Partial& source);

}  // namespace kvmesh
