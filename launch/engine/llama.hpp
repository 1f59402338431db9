// A model of the llama family, its linear layers split by rows over the ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kvmesh/communicator.hpp"
#include "kvmesh/tensor.hpp"
#include "kvmesh/thread_pool.hpp"
#include "launch/engine/gguf/gguf.hpp"
#include "launch/engine/matrix.hpp"
#include "launch/engine/ops.hpp"
#include "launch/engine/row_gather.hpp"
#include "launch/engine/text/tokenizer.hpp"

namespace kvmesh::engine {

struct LlamaShape {
  int layers = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  std::int64_t embedding = 0;
  std::int64_t feed_forward = 0;
  std::int64_t vocabulary = 0;
  std::int64_t context_tokens = 0;  ///< The length that the model was trained for.
  std::int64_t rope_dims = 0;
  double rope_base = 10000.0;
  float norm_epsilon = 1e-5f;
};

/// Reads and checks the hyper-parameters.
/// @throws ModelError if they are missing, absurd or of another architecture.
LlamaShape llama_shape(const GgufFile& file);

/// The attention of one layer, which the caller computes: it stores k and v, attends, and fills o.
/// The tensors hold the n tokens of the current forward, all heads, on every rank, with rotary
/// embedding applied: `q` [n, q_heads, head_dim], `k` and `v` [n, kv_heads, head_dim], `o` as q.
/// float32. The scale is the usual 1 / sqrt(head_dim).
struct Attention {
  int layer = 0;
  ConstTensorView q;
  ConstTensorView k;
  ConstTensorView v;
  TensorView o;
};
using Attend = std::function<void(const Attention&)>;

/// Every rank of `comm` computes its share of the rows of each matrix, and the results are
/// gathered: four collectives per layer and one for the result. All activations have the same bits
/// on every rank, and for any number of ranks. The file, the communicator and the threads must
/// outlive it.
class Llama {
 public:
  /// @throws ModelError.
  Llama(const GgufFile& file, Communicator& comm, ThreadPool& threads);

  const LlamaShape& shape() const { return shape_; }

  /// Collective: all ranks pass the same. Runs `tokens`, token i at logical position positions[i],
  /// and calls `attend` once per layer, in order.
  /// @throws InvalidArgument on an empty batch, unequal lengths or a token outside the vocabulary.
  void forward(std::span<const Token> tokens, std::span<const std::int64_t> positions,
               const Attend& attend);

  /// Collective: the logits [vocabulary] of the last forward's token `token` (an index into its
  /// batch), on every rank. Valid until the next call. @throws InvalidArgument.
  std::span<const float> logits(std::int64_t token);

  /// Collective: argmax(logits(token)), exchanging one candidate per rank instead of the logits.
  Token greedy(std::int64_t token);

 private:
  struct Layer {
    std::vector<float> attention_norm;
    Matrix q, k, v, o;
    std::vector<float> feed_forward_norm;
    Matrix gate, up, down;
  };

  Layer read_layer(const GgufFile& file, int index) const;
  void embed(std::span<const Token> tokens);
  void attention_block(int index, const Attend& attend);
  void feed_forward_block(const Layer& layer);
  void normalise(std::span<const float> weight);
  /// Adds `weights` times x [tokens_, cols], gathered over the ranks, to the residual.
  void project_to_residual(const Matrix& weights, std::span<const float> x);
  /// This rank's share of the logits of a token.
  std::span<const float> my_logits(std::int64_t token);

  LlamaShape shape_;
  RowGather gather_;
  ThreadPool& threads_;
  Rope rope_;
  Matrix embeddings_;
  Matrix output_;
  std::vector<float> output_norm_;
  std::vector<Layer> layers_;

  // The current batch. Buffers only grow.
  std::int64_t tokens_ = 0;
  std::vector<float> residual_;  // [tokens, embedding]
  std::vector<float> normed_;    // [tokens, embedding]
  std::vector<float> qkv_;       // [tokens, (q_heads + 2 kv_heads) * head_dim]
  std::vector<float> attended_;  // [tokens, q_heads * head_dim]
  std::vector<float> hidden_;    // [tokens, feed_forward]
  std::vector<float> projected_;
  std::vector<float> mine_;  // this rank's rows, before they are gathered
  std::vector<float> logits_;
};

}  // namespace kvmesh::engine
