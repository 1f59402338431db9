// A text that begins as an earlier one: the generator reuses its pages, and writes the same.
#include <gtest/gtest.h>

#include "launch/cli/run.hpp"
#include "tests/launch/tiny_gguf.hpp"

namespace kvmesh::launch {
namespace {

using engine::Token;

constexpr int kPageSize = 16;

GeneratorOptions options() {
  return {.page_size = kPageSize, .pages_per_rank = 16, .reproducible = true, .sampling = {}};
}

Run answer(Generator& generator, std::span<const Token> tokens) {
  const Prompt prompt{.tokens = {tokens.begin(), tokens.end()}, .ends = {}};
  return run(generator, prompt, 20, {[](std::int64_t, std::int64_t) {}, [](Token) {}});
}

TEST(Generator, AnswersFromCachedPagesAsFromComputedOnes) {
  const test::TemporaryFile path(test::tiny_model());
  const engine::GgufFile file(path.path());
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  std::vector<Token> first(40), second;
  for (std::size_t i = 0; i < first.size(); ++i) first[i] = static_cast<Token>(3 + i * 7 % 200);

  Generator generator(mesh, file, options());
  const auto one = answer(generator, first);
  EXPECT_EQ(one.cached_tokens, 0);
  second = first;
  second.insert(second.end(), one.tokens.begin(), one.tokens.end());
  second.resize(second.size() + 5, Token{9});
  const auto two = answer(generator, second);
  EXPECT_EQ(two.cached_tokens, 3 * kPageSize);  // of 59 tokens

  Generator fresh(mesh, file, options());
  const auto whole = answer(fresh, second);
  EXPECT_EQ(whole.cached_tokens, 0);
  EXPECT_EQ(whole.tokens, two.tokens);
  // The same text again: all of it but the last token, part of the last page included.
  EXPECT_EQ(answer(fresh, second).cached_tokens, std::ssize(second) - 1);
  EXPECT_EQ(answer(fresh, second).tokens, two.tokens);
}

}  // namespace
}  // namespace kvmesh::launch
