// A partial: the result of attention over a subset of the keys.
#pragma once

#include "kvmesh/api.h"
#include "kvmesh/tensor.hpp"

namespace KVMESH_API kvmesh {

/// The base of a log-sum-exp. Two partials can be merged only if their bases are equal, so the base
/// is part of the type.
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

/// The partial of all public interfaces: natural log.
using Partial = BasicPartial<LogBase::kNatural>;

/// For an engine's own kernels that compute with exp2; kvmesh's kernels return natural logarithms.
/// `to_natural` is the only conversion to a `Partial`.
using Base2Partial = BasicPartial<LogBase::kTwo>;

/// Rescales the LSE in place (natural = base two · ln 2) and returns the same views, retyped. Runs
/// on the CPU; nccl.hpp has the same on GPUs.
/// @throws InvalidArgument if `partial` is not a valid partial in host memory.
Partial to_natural(const Base2Partial& partial);

/// Merges `source` into `destination`, row by row: the result is the exact partial over the union
/// of two disjoint subsets of keys. Runs on the CPU.
/// @throws InvalidArgument if the shapes differ, or if an argument is not a valid partial in host
/// memory.
/// Source: the LSE merge of FlashAttention's split-KV (Dao et al., 2022).
void merge_into(const Partial& destination, const Partial& source);

}  // namespace kvmesh
