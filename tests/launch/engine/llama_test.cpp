#include "launch/engine/llama.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>
#include <numeric>

#include "kvmesh/error.hpp"
#include "launch/engine/sampling.hpp"
#include "tests/launch/engine/dense_attention.hpp"
#include "tests/launch/engine/llama_reference.hpp"
#include "tests/launch/tiny_gguf.hpp"

namespace kvmesh::engine {
namespace {

using test::TemporaryFile;
using test::TinyModelOptions;

const std::vector<Token> kPrompt{1, 107, 260, 4, 4, 99, 35, 200, 264, 2, 17};

std::vector<std::int64_t> positions(std::int64_t first, std::size_t count) {
  std::vector<std::int64_t> values(count);
  std::iota(values.begin(), values.end(), first);
  return values;
}

/// The logits of the last token of kPrompt, given to the model `chunk` tokens at a time.
std::vector<float> run(Llama& model, std::size_t chunk) {
  DenseAttention attention(model.shape());
  std::size_t last = 0;
  for (std::size_t at = 0; at < kPrompt.size(); at += chunk) {
    const auto tokens = std::span(kPrompt).subspan(at, std::min(chunk, kPrompt.size() - at));
    model.forward(tokens, positions(static_cast<std::int64_t>(at), tokens.size()),
                  std::ref(attention));
    last = tokens.size() - 1;
  }
  const auto logits = model.logits(static_cast<std::int64_t>(last));
  return {logits.begin(), logits.end()};
}

std::vector<float> run_alone(const GgufFile& file, std::size_t chunk) {
  const auto comm = make_single_communicator();
  ThreadPool threads(2);
  Llama model(file, *comm, threads);
  return run(model, chunk);
}

TEST(Llama, LogitsMatchFloat64) {
  for (WeightType type : {WeightType::kF32, WeightType::kQ4_1, WeightType::kQ8_0}) {
    for (bool tied : {true, false}) {
      const TemporaryFile path(test::tiny_model({.tied = tied, .matrices = type}));
      const GgufFile file(path.path());
      const std::vector<double> exact = LlamaReference(file).logits(kPrompt);
      const std::vector<float> logits = run_alone(file, kPrompt.size());
      ASSERT_EQ(logits.size(), exact.size());
      double largest = 0.0;
      for (double logit : exact) largest = std::max(largest, std::abs(logit));
      ASSERT_GT(largest, 0.1);
      for (std::size_t i = 0; i < exact.size(); ++i) {
        ASSERT_NEAR(logits[i], exact[i], 1e-5 * largest) << i;
      }
    }
  }
}

TEST(Llama, ChunksOfThePromptGiveTheSameBits) {
  const TemporaryFile path(test::tiny_model());
  const GgufFile file(path.path());
  const std::vector<float> whole = run_alone(file, kPrompt.size());
  EXPECT_EQ(run_alone(file, 1), whole);
  EXPECT_EQ(run_alone(file, 4), whole);
}

TEST(Llama, AnyNumberOfRanksGivesTheSameBitsOnEveryRank) {
  // Three key heads and an odd vocabulary: shares differ in size.
  const TemporaryFile path(
      test::tiny_model({.q_heads = 6, .kv_heads = 3, .head_dim = 32, .tied = false}));
  const GgufFile file(path.path());
  const std::vector<float> alone = run_alone(file, kPrompt.size());
  const Token best = argmax(alone);
  for (int ranks : {1, 2, 3, 4, 7}) {
    run_loopback(ranks, [&](Communicator& comm) {
      ThreadPool threads(1);
      Llama model(file, comm, threads);
      EXPECT_EQ(run(model, 4), alone) << "rank " << comm.rank().value << " of " << ranks;
      EXPECT_EQ(model.greedy(2), best) << "rank " << comm.rank().value << " of " << ranks;
    });
  }
}

TEST(Llama, MoreRanksThanRowsOfAMatrix) {
  const TemporaryFile path(
      test::tiny_model({.layers = 1, .q_heads = 4, .kv_heads = 1, .head_dim = 8}));
  const GgufFile file(path.path());
  const std::vector<float> alone = run_alone(file, kPrompt.size());
  run_loopback(9, [&](Communicator& comm) {  // 8 rows of keys
    ThreadPool threads(1);
    Llama model(file, comm, threads);
    EXPECT_EQ(run(model, kPrompt.size()), alone);
  });
}

TEST(Llama, CallsAttentionOncePerLayerWithAllHeads) {
  const TemporaryFile path(test::tiny_model({.layers = 3}));
  const GgufFile file(path.path());
  const auto comm = make_single_communicator();
  ThreadPool threads(1);
  Llama model(file, *comm, threads);
  int calls = 0;
  model.forward(std::vector<Token>{5, 6}, positions(0, 2), [&](const Attention& io) {
    EXPECT_EQ(io.layer, calls++);
    EXPECT_EQ(io.q.shape, (std::array<std::int64_t, 4>{2, 4, 16}));
    EXPECT_EQ(io.k.shape, (std::array<std::int64_t, 4>{2, 2, 16}));
    EXPECT_EQ(io.v.shape, io.k.shape);
    EXPECT_EQ(io.o.shape, io.q.shape);
    EXPECT_EQ(io.q.stride(2), 1);
    std::fill_n(static_cast<float*>(io.o.data), io.o.elements(), 0.0f);
  });
  EXPECT_EQ(calls, 3);
}

TEST(Llama, RejectsInvalidBatches) {
  const TemporaryFile path(test::tiny_model());
  const GgufFile file(path.path());
  const auto comm = make_single_communicator();
  ThreadPool threads(1);
  Llama model(file, *comm, threads);
  const auto attempt = [&](std::vector<Token> tokens, std::size_t count) {
    DenseAttention attention(model.shape());
    model.forward(tokens, positions(0, count), std::ref(attention));
  };
  EXPECT_THROW(model.logits(0), InvalidArgument);  // nothing has run yet
  EXPECT_THROW(attempt({}, 0), InvalidArgument);
  EXPECT_THROW(attempt({1, 2}, 1), InvalidArgument);
  EXPECT_THROW(attempt({-1}, 1), InvalidArgument);
  EXPECT_THROW(attempt({static_cast<Token>(model.shape().vocabulary)}, 1), InvalidArgument);
  attempt({1, 2}, 2);
  EXPECT_THROW(model.greedy(2), InvalidArgument);
  EXPECT_GE(model.greedy(1), 0);
}

/// The error of loading a tiny model with one text of its file replaced by another of its length.
std::string error_with(const TinyModelOptions& options, std::string_view from,
                       std::string_view to) {
  std::string bytes = test::tiny_model(options);
  if (!from.empty()) bytes.replace(bytes.find(from), to.size(), to);
  const TemporaryFile path(bytes);
  const auto comm = make_single_communicator();
  try {
    const GgufFile file(path.path());
    ThreadPool threads(1);
    const Llama model(file, *comm, threads);
    return "";
  } catch (const ModelError& error) {
    return error.what();
  }
}

TEST(Llama, NamesTheDefectOfAModel) {
  const auto expect = [](const std::string& message, std::string_view part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  EXPECT_EQ(error_with({}, "", ""), "");
  expect(error_with({}, "llama", "gpt-2"), "architecture 'gpt-2' is not supported: this program");
  expect(error_with({}, "llama.block_count", "llama.block_xxxxx"), "llama.block_count is missing");
  expect(error_with({}, "blk.1.ffn_up", "blk.1.ffn_xx"), "tensor blk.1.ffn_up.weight is missing");
  expect(error_with({.kv_heads = 3}, "", ""), "4 query heads cannot share 3 key heads");
  expect(error_with({.layers = 0}, "", ""), "llama.block_count is 0");
  expect(error_with({.q_heads = 32, .kv_heads = 1, .head_dim = 3}, "", ""), "3 rotary dimensions");
  const auto entry = [](std::string key, char value) {
    return key + std::string{4, 0, 0, 0, value, 0, 0, 0};  // a uint32
  };
  expect(error_with({}, entry("llama.rope.dimension_count", 16),
                    entry("llama.attention.key_length", 8)),
         "4 query heads of 8, but 64 rows in blk.0.attn_q.weight");
  expect(error_with({.feed_forward = 80, .matrices = WeightType::kF32}, "", ""),
         "needs a multiple of 32");
}

TEST(Llama, AcceptsKeysWithoutEffect) {
  EXPECT_EQ(error_with({.heads_per_layer = true}, "", ""), "");
  const auto with = [](auto add) { return error_with({.with = add}, "", ""); };
  EXPECT_EQ(with([](test::GgufWriter& file) {
              file.text("llama.rope.scaling.type", "linear");
              file.real("llama.rope.scaling.factor", 1.0f);
            }),
            "");
  EXPECT_EQ(with([](test::GgufWriter& file) {
              file.text("llama.rope.scaling.type", "none");
              file.real("llama.rope.scaling.factor", 4.0f);
            }),
            "");
}

TEST(Llama, RejectsTensorsThatAreTooSmall) {
  const auto expect = [](auto add, std::string_view part) {
    const std::string message = error_with({.with = add}, "", "");
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  for (const char* name : {"blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.2.attn_q.weight",
                           "rope_factors_long.weight", "output.bias"}) {
    expect(
        [&](test::GgufWriter& file) {
          file.tensor(name, WeightType::kF32, {1}, std::string(4, '\0'));
        },
        fmt::format("tensor {} is not supported", name));
  }
  for (const char* key :
       {"llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.scaling.attn_factor"}) {
    expect([&](test::GgufWriter& file) { file.real(key, 4.0f); },
           fmt::format("rope scaling is not supported, and {} is 4", key));
  }
  expect([](test::GgufWriter& file) { file.text("llama.rope.scaling.type", "yarn"); },
         "rope scaling 'yarn' is not supported");
  expect([](test::GgufWriter& file) { file.integer("llama.attention.sliding_window", 64); },
         "key llama.attention.sliding_window is not supported");
  expect(
      [](test::GgufWriter& file) {
        file.integers("llama.attention.key_length", std::vector<std::int32_t>{16, 8});
      },
      "llama.attention.key_length differs from layer to layer");
}

}  // namespace
}  // namespace kvmesh::engine
