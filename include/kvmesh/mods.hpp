// Score mods and mask mods: attention variants written as C++ lambdas.
//
//   Buffer<float> slopes({0.5f, 0.25f});
//   ScoreMod alibi([slopes](auto score, auto b, auto h, auto q, auto kv) {
//     return score + slopes[h] * to_float(kv - q);
//   });
//   MaskMod causal([](auto b, auto h, auto q, auto kv) { return q >= kv; });
//
// The lambda is called once, with symbolic values. The call records a graph of operations, which
// every backend runs. `q` and `kv` are logical positions in the sequence (int32), `b` is the row of
// the batch, `h` the query head.
#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>

#include "kvmesh/api.h"
#include "kvmesh/expr.hpp"

namespace KVMESH_API kvmesh {

class ModGraph;  // internal: kernels/mods/graph.hpp

/// The symbolic inputs of a mod, for tracing.
struct ModInputs {
  Expr score, b, h, q, kv;
};
ModInputs symbolic_inputs();
/// Makes the graph that computes `result`, converted to float32.
/// @throws InvalidArgument if `result` is a bool.
std::shared_ptr<const ModGraph> make_score_graph(const Expr& result);
/// Makes the graph that computes `result`.
/// @throws InvalidArgument unless `result` is a bool.
std::shared_ptr<const ModGraph> make_mask_graph(const Expr& result);

/// Changes a score: (score, b, h, q, kv) -> score, applied after the scale, before the softmax.
/// Immutable, cheap to copy, safe to share among threads.
class ScoreMod {
 public:
  /// The identity: it does not change scores.
  ScoreMod();

  /// Traces `function`. @throws InvalidArgument on a type error, naming operation and types.
  template <class F>
  requires(!std::same_as<F, ScoreMod> && std::invocable<const F&, Expr, Expr, Expr, Expr, Expr>)
      ScoreMod(const F& function) {
    const Tracing tracing;
    const ModInputs in = symbolic_inputs();
    graph_ = make_score_graph(Expr(function(in.score, in.b, in.h, in.q, in.kv)));
  }

  bool is_identity() const;
  const ModGraph& graph() const { return *graph_; }
  std::string to_string() const;

  /// Applies the mod inside another mod's lambda.
  Expr operator()(const Expr& score, const Expr& b, const Expr& h, const Expr& q,
                  const Expr& kv) const;
  /// Computes one score on the host, slowly. The backends are tested against it.
  float operator()(float score, std::int32_t b, std::int32_t h, std::int32_t q,
                   std::int32_t kv) const;

 private:
  std::shared_ptr<const ModGraph> graph_;
};

/// Selects the keys that a query sees: (b, h, q, kv) -> bool. Immutable, cheap to copy, safe to
/// share among threads.
class MaskMod {
 public:
  /// Everything is visible.
  MaskMod();

  /// Traces `function`. @throws InvalidArgument on a type error, naming operation and types.
  template <class F>
  requires(!std::same_as<F, MaskMod> && std::invocable<const F&, Expr, Expr, Expr, Expr>)
      MaskMod(const F& function) {
    const Tracing tracing;
    const ModInputs in = symbolic_inputs();
    graph_ = make_mask_graph(Expr(function(in.b, in.h, in.q, in.kv)));
  }

  bool is_identity() const;
  const ModGraph& graph() const { return *graph_; }
  std::string to_string() const;

  Expr operator()(const Expr& b, const Expr& h, const Expr& q, const Expr& kv) const;
  bool operator()(std::int32_t b, std::int32_t h, std::int32_t q, std::int32_t kv) const;

 private:
  std::shared_ptr<const ModGraph> graph_;
};

MaskMod operator&&(const MaskMod& a, const MaskMod& b);
MaskMod operator||(const MaskMod& a, const MaskMod& b);
MaskMod operator!(const MaskMod& a);

/// Common mods. All are lambdas, as a caller's own mods are.
namespace mods {

// ---- Masks ----

/// Everything is visible.
MaskMod no_mask();
/// A query sees its own position and all positions before it. By default queries have the newest
/// positions of their sequence, so the triangle is aligned to the end (lower right).
MaskMod causal();
/// The triangle aligned to the first key (upper left), for batches whose queries have explicit
/// positions 0 .. q_len-1. Only the positions differ: the function is that of `causal`.
MaskMod causal_upper_left();
/// The upper left triangle for queries with default positions: `first_query[b]` is the position of
/// the row's first query (kv_len - q_len).
MaskMod causal_upper_left(const Buffer<std::int32_t>& first_query);
/// Causal, limited to the last `n` keys, the query's own position included. n >= 1.
MaskMod sliding_window(std::int32_t n);
/// The first `prefix_len` positions see each other; later positions are causal.
MaskMod prefix_lm(std::int32_t prefix_len);
/// The same with one length per batch row.
MaskMod prefix_lm(const Buffer<std::int32_t>& prefix_len);
/// Positions see each other only within the same document: `doc_id[position]`.
MaskMod documents(const Buffer<std::int32_t>& doc_id);

template <class... Masks>
MaskMod mask_and(const MaskMod& first, const Masks&... rest) {
  return (first && ... && MaskMod(rest));
}
template <class... Masks>
MaskMod mask_or(const MaskMod& first, const Masks&... rest) {
  return (first || ... || MaskMod(rest));
}

// ---- Scores ----

/// score + slopes[h] * (kv - q). Source: Press et al., "Train Short, Test Long", 2021.
ScoreMod alibi(const Buffer<float>& slopes);
/// ALiBi with the paper's slopes for `n_heads` heads; `n_heads` may be any number.
ScoreMod alibi(int n_heads);
Buffer<float> alibi_slopes(int n_heads);
/// cap * tanh(score / cap). cap > 0.
ScoreMod soft_cap(float cap);
/// score + table[h][clamp(q - kv, -max_distance, max_distance) + max_distance]. `table` has rows of
/// 2 * max_distance + 1 entries, one row per head or one row for all heads. After T5's relative
/// position bias, with one entry per distance.
ScoreMod relative_bias(const Buffer<float>& table, std::int32_t max_distance);

/// Applies `first`, then `second` to its result.
ScoreMod compose(const ScoreMod& first, const ScoreMod& second);

}  // namespace mods
}  // namespace kvmesh
