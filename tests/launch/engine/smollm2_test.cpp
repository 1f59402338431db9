// On SmolLM2-135M-Instruct, whose GGUF file KVMESH_MODEL names; skipped if it is not set.
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <string>

#include "launch/engine/llama.hpp"
#include "tests/launch/engine/dense_attention.hpp"

namespace kvmesh::engine {
namespace {

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    const char* path = std::getenv("KVMESH_MODEL");
    if (path == nullptr) GTEST_SKIP() << "KVMESH_MODEL is not set";
    file_ = std::make_unique<GgufFile>(path);
  }
  std::unique_ptr<GgufFile> file_;
};

struct Golden {
  std::string text;
  std::vector<Token> tokens;
};

/// Results of the `tokenizers` package for Python with this vocabulary, Digits(individual_digits)
/// and ByteLevel(add_prefix_space=False).
const std::vector<Golden>& golden() {
  static const std::vector<Golden> pairs{
      {"Hello, world!", {19556, 28, 905, 17}},
      {"The quick brown fox jumps over the lazy dog.",
       {504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30}},
      {"  leading and   inner  spaces ", {216, 2899, 284, 256, 6210, 216, 5600, 216}},
      {"line one\nline two\n\n\tindented\r\n",
       {1311, 582, 198, 1311, 827, 1116, 197, 526, 6574, 2738}},
      {"In 2024, 3.14159 and 1,000,000 were numbers.",
       {788, 216, 34, 32, 34, 36, 28, 216, 35, 30, 33, 36,  33,   37, 41,
        284, 216, 33, 28, 32, 32, 32, 28,  32, 32, 32, 592, 2966, 30}},
      {"I'll say it's what they've done; we're sure he'd go, I'm not, don't.",
       {57,   3060, 1643, 357, 506, 732, 502,  3543, 2294, 43,   392, 2316,
        2090, 384,  6737, 685, 28,  339, 5248, 441,  28,   1326, 982, 30}},
      {"I'LL DON'T", {57, 23, 16421, 422, 2154, 23, 68}},
      {"naïve café — “quoted” … déjà vu",
       {3546, 46494, 37366, 1841, 619, 385, 5036, 573, 5548, 32564, 90, 16739, 386, 101}},
      {"Привет, мир! Как дела?",
       {155, 249, 46879, 16464, 32547, 28, 41337, 7872, 9175, 17, 5470, 244, 6511, 13760, 33427,
        42292, 6511, 47}},
      {"你好，世界。今天天气很好。",
       {18645, 250, 48392, 138, 12831, 7906, 240, 178,   239, 230,   19076, 15076, 228,
        18614, 119, 18614, 119, 177,   125,  238, 29157, 226, 48392, 138,   19076}},
      {"日本語のテキスト、カタカナ。",
       {23274, 115, 40993, 179,   120, 248,   26453, 11100, 224, 10391, 251, 10391, 134,
        11100, 226, 29917, 10391, 121, 10391, 140,   10391, 121, 11100, 228, 19076}},
      {"مرحبا بالعالم ٣٤٥",
       {21706, 20602, 44626, 31462, 10805, 45726, 22208, 34966, 22208, 21706, 216, 164, 113, 164,
        114, 164, 115}},
      {"emoji "
       "\360\237\230\200\360\237\221\251\342\200\215\360\237\221\251\342\200\215\360\237\221\247"
       "\342\200\215\360\237\221\246\360\237\207\251\360\237\207\252 done",
       {391, 33777, 40303, 218, 10813, 235, 119, 321,   231, 10813, 235,   119, 321, 231, 10813,
        235, 117,   321,   231, 10813, 235, 116, 10813, 225, 119,   10813, 225, 120, 2294}},
      {"def f(x):\n    return x ** 2  # square\n",
       {1604, 275, 24, 104, 727, 472, 1003, 1792, 1903, 216, 34, 216, 907, 5222, 198}},
      {"x = [1, 2, 3]; y = {'a': 1}",
       {104, 446, 933, 33, 28, 216, 34, 28, 216, 35, 26695, 329, 446, 7353, 81, 1539, 216, 33,
        109}},
      {"   \n \n  x", {333, 198, 3717, 216, 1792}},
      {"trailing   ", {4861, 4966, 333}},
      {"a b\302\240c\343\200\200d\342\200\211e",
       {81, 278, 15442, 83, 12109, 218, 84, 321, 227, 85}},
      {"Ⅷ ½ ² 5th ５", {173, 223, 117, 216, 16738, 216, 19133, 216, 37, 373, 216, 8083, 239}},
      {"<|im_start|>user\nHi<|im_end|>\n", {1, 4093, 198, 26843, 2, 198}},
      {"http://example.com/path?q=1&r=%20",
       {5031, 1742, 7434, 30, 824, 31, 1537, 47, 97, 45, 33, 22, 98, 23446, 34, 32}},
      {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
       {46880, 46880, 46880, 46880, 46880, 46880, 46880, 46880}},
      {"é combining नमस्ते", {85, 151, 219, 9301, 12335, 118, 35090, 38770, 16525, 26293, 30581}},
  };
  return pairs;
}

TEST_F(SmolLm2, TokensAreThoseOfThePackageForPython) {
  const Tokenizer tokenizer(*file_);
  for (const Golden& pair : golden()) {
    EXPECT_EQ(tokenizer.encode(pair.text, ControlTokens::kRecognise), pair.tokens) << pair.text;
    EXPECT_EQ(tokenizer.decode(pair.tokens), pair.text);
  }
}

std::string answer(Llama& model, const Tokenizer& tokenizer, const std::string& question) {
  std::vector<Token> tokens =
      tokenizer.encode("<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n",
                       ControlTokens::kRecognise);
  DenseAttention attention(model.shape());
  std::string text;
  std::int64_t length = 0;
  while (length < 64) {
    std::vector<std::int64_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), length);
    model.forward(tokens, positions, std::ref(attention));
    length += static_cast<std::int64_t>(tokens.size());
    tokens = {model.greedy(static_cast<std::int64_t>(tokens.size()) - 1)};
    if (tokens[0] == tokenizer.end_tokens().at(0)) break;
    text += tokenizer.decode(tokens[0]);
  }
  return text;
}

TEST_F(SmolLm2, AnswersInEnglishTheSameOnAnyNumberOfRanks) {
  const Tokenizer tokenizer(*file_);
  for (int ranks : {1, 3}) {
    run_loopback(ranks, [&](Communicator& comm) {
      ThreadPool threads(1);
      Llama model(*file_, comm, threads);
      EXPECT_EQ(answer(model, tokenizer, "What is the capital of France?"),
                "The capital of France is Paris.");
    });
  }
}

/// Logits of "<|im_start|>user\nExplain why the sky is blue, in three sentences.<|im_end|>\n...": a
/// float64 forward of the decoded weights, written with numpy.
TEST_F(SmolLm2, LogitsMatchANumpyForward) {
  const Tokenizer tokenizer(*file_);
  const auto comm = make_single_communicator();
  ThreadPool threads(2);
  Llama model(*file_, *comm, threads);
  const std::vector<Token> tokens = tokenizer.encode(
      "<|im_start|>user\nExplain why the sky is blue, in three sentences.<|im_end|>\n"
      "<|im_start|>assistant\n",
      ControlTokens::kRecognise);
  std::vector<std::int64_t> positions(tokens.size());
  std::iota(positions.begin(), positions.end(), 0);
  DenseAttention attention(model.shape());
  model.forward(tokens, positions, std::ref(attention));
  const auto logits = model.logits(static_cast<std::int64_t>(tokens.size()) - 1);
  const std::vector<std::pair<std::size_t, double>> exact{
      {504, 32.659663},  {0, 14.846677},   {2, 20.996687},    {17, 17.230567},   {100, 20.609539},
      {1000, 17.729962}, {9999, 9.179301}, {25000, 9.883030}, {49151, 12.802812}};
  for (const auto& [token, logit] : exact) {
    EXPECT_NEAR(logits[token], logit, 3e-4) << token;
  }
}

}  // namespace
}  // namespace kvmesh::engine
