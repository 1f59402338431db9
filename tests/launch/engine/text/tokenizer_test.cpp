#include "launch/engine/text/tokenizer.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"
#include "launch/engine/text/pretokenizer.hpp"
#include "launch/engine/text/unicode.hpp"
#include "tests/launch/tiny_gguf.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::engine {
namespace {

using Words = std::vector<std::string_view>;

Tokenizer tokenizer_of(const test::TinyVocabulary& vocabulary) {
  test::GgufWriter writer;
  test::add_tokenizer(writer, vocabulary);
  const test::TemporaryFile file(writer.bytes());
  return Tokenizer(GgufFile(file.path()));
}

std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text,
                                ControlTokens control = ControlTokens::kAsText) {
  std::vector<std::string> names;
  for (Token token : tokenizer.encode(text, control)) names.emplace_back(tokenizer.decode(token));
  return names;
}

TEST(Pretokenizer, SplitsLikeGpt2WithNumbersAlone) {
  EXPECT_EQ(split_words("Hello, world! x"), (Words{"Hello", ",", " world", "!", " x"}));
  EXPECT_EQ(split_words("I'll don't it's I'LL"),
            (Words{"I", "'ll", " don", "'t", " it", "'s", " I", "'", "LL"}));
  EXPECT_EQ(split_words("a   b  \n"), (Words{"a", "  ", " b", "  \n"}));
  EXPECT_EQ(split_words("a\n\nb\tc"), (Words{"a", "\n", "\n", "b", "\t", "c"}));
  EXPECT_EQ(split_words("in 2024 x"), (Words{"in", " ", "2", "0", "2", "4", " x"}));
  EXPECT_EQ(split_words("  5"), (Words{"  ", "5"}));
  EXPECT_EQ(split_words("é½٣漢字…"), (Words{"é", "½", "٣", "漢字", "…"}));
  EXPECT_EQ(split_words(" "), (Words{" "}));
  EXPECT_EQ(split_words(""), Words{});
}

TEST(Pretokenizer, WordsConcatenateToTheText) {
  const std::uint64_t seed = test::seed_or(32);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (std::int64_t i = random.integer(0, 20); i > 0; --i) {
      text += static_cast<char>(random.coin() ? random.integer(0, 255) : random.integer(32, 57));
    }
    std::string joined;
    for (std::string_view word : split_words(text)) {
      EXPECT_FALSE(word.empty());
      joined += word;
    }
    EXPECT_EQ(joined, text);
  }
}

TEST(Unicode, EveryCodePointRoundTrips) {
  for (std::uint32_t code = 0; code <= 0x10FFFF; code += code < 0x3000 ? 1 : 97) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    std::string text;
    append_utf8(text, code);
    const CodePoint point = decode_utf8(text);
    ASSERT_EQ(point.code, code);
    ASSERT_EQ(static_cast<std::size_t>(point.size), text.size());
    // Every proper prefix is incomplete.
    for (std::size_t size = 1; size <= text.size(); ++size) {
      ASSERT_EQ(complete_utf8_prefix(text.substr(0, size)), size == text.size() ? size : 0);
    }
  }
}

TEST(Unicode, InvalidSequencesAreSingleBytes) {
  for (std::string_view text : {"\x80", "\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80",
                                "\xF4\x90\x80\x80", "\xFF", "\xE2\x82", "\xE2(\xA1"}) {
    EXPECT_EQ(decode_utf8(text).code, kInvalidCode);
    EXPECT_EQ(decode_utf8(text).size, 1);
  }
}

TEST(Unicode, Classes) {
  EXPECT_EQ(classify('a'), CodeClass::kLetter);
  EXPECT_EQ(classify(0x4F60), CodeClass::kLetter);
  EXPECT_EQ(classify(0x0915), CodeClass::kLetter);
  EXPECT_EQ(classify(0x0301), CodeClass::kOther);  // a combining mark
  EXPECT_EQ(classify('7'), CodeClass::kNumber);
  EXPECT_EQ(classify(0x2167), CodeClass::kNumber);  // Roman numeral eight
  EXPECT_EQ(classify(0x3000), CodeClass::kSpace);
  EXPECT_EQ(classify(0xA0), CodeClass::kSpace);
  EXPECT_EQ(classify(0x1F600), CodeClass::kOther);
  EXPECT_EQ(classify(kInvalidCode), CodeClass::kOther);
}

TEST(Tokenizer, AppliesTheEarliestMergeFirst) {
  const Tokenizer tokenizer = tokenizer_of(test::tiny_vocabulary());
  EXPECT_EQ(pieces(tokenizer, "hello"), (std::vector<std::string>{"hello"}));
  EXPECT_EQ(pieces(tokenizer, "hellhe"), (std::vector<std::string>{"hell", "he"}));
  EXPECT_EQ(pieces(tokenizer, "lllll"), (std::vector<std::string>{"ll", "ll", "l"}));
  // "h e" comes before "Ġ t" and "Ġt he": " the" is one token, "Xthe" is not.
  EXPECT_EQ(pieces(tokenizer, " the"), (std::vector<std::string>{" the"}));
  EXPECT_EQ(pieces(tokenizer, "Xthe"), (std::vector<std::string>{"X", "t", "he"}));
  EXPECT_EQ(pieces(tokenizer, "é"), (std::vector<std::string>{"é"}));
}

TEST(Tokenizer, RoundTripsAnyBytes) {
  const std::uint64_t seed = test::seed_or(33);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  const Tokenizer tokenizer = tokenizer_of(test::tiny_vocabulary());
  for (int round = 0; round < 1000; ++round) {
    std::string text;
    for (std::int64_t i = random.integer(0, 60); i > 0; --i) {
      text += random.coin() ? "hello the"[random.integer(0, 8)]
                            : static_cast<char>(random.integer(0, 255));
    }
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  const std::string run(200'000, 'l');  // quadratic work would take minutes
  EXPECT_EQ(tokenizer.encode(run).size(), run.size() / 2);
}

TEST(Tokenizer, ControlTokensOnlyWhenAsked) {
  const Tokenizer tokenizer = tokenizer_of(test::tiny_vocabulary());
  const std::string text = "<|im_start|>he<|im_end|>";
  EXPECT_EQ(tokenizer.encode(text, ControlTokens::kRecognise),
            (std::vector<Token>{1, tokenizer.find("he").value(), 2}));
  for (Token token : tokenizer.encode(text)) EXPECT_FALSE(tokenizer.is_control(token));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  EXPECT_TRUE(tokenizer.is_control(2));
  EXPECT_EQ(tokenizer.find("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer.find("no such token"), std::nullopt);
  EXPECT_EQ(tokenizer.end_tokens(), std::vector<Token>{2});
  EXPECT_EQ(tokenizer.begin_token(), std::nullopt);
}

TEST(Tokenizer, UserDefinedTokensAlwaysAndTheLongestFirst) {
  test::TinyVocabulary vocabulary = test::tiny_vocabulary();
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"<a", "<a b>"});
  vocabulary.types.insert(vocabulary.types.end(), {4, 4});
  const Tokenizer tokenizer = tokenizer_of(vocabulary);
  EXPECT_EQ(pieces(tokenizer, "x<a b><a"), (std::vector<std::string>{"x", "<a b>", "<a"}));
}

TEST(Tokenizer, DropsBytesMissingFromTheVocabulary) {
  test::TinyVocabulary vocabulary = test::tiny_vocabulary();
  vocabulary.tokens[3 + 4] = "<unused>";  // byte 4
  const Tokenizer tokenizer = tokenizer_of(vocabulary);
  EXPECT_EQ(pieces(tokenizer, "h\4e"), (std::vector<std::string>{"h", "e"}));
  EXPECT_EQ(pieces(tokenizer, "\4"), std::vector<std::string>{});
}

TEST(Tokenizer, BrokenOrOtherVocabulariesAreModelErrors) {
  test::TinyVocabulary merge = test::tiny_vocabulary();
  merge.merges.push_back("no space-less");
  EXPECT_THROW(tokenizer_of(merge), ModelError);
  test::TinyVocabulary types = test::tiny_vocabulary();
  types.types.pop_back();
  EXPECT_THROW(tokenizer_of(types), ModelError);
  test::TinyVocabulary letter = test::tiny_vocabulary();
  letter.tokens[3 + 'q'] = "qq";
  EXPECT_THROW(tokenizer_of(letter), ModelError);
  test::GgufWriter other;
  other.text("tokenizer.ggml.model", "llama");
  const test::TemporaryFile file(other.bytes());
  EXPECT_THROW(Tokenizer(GgufFile(file.path())), ModelError);
}

TEST(Tokenizer, RejectsTokensOutsideTheVocabulary) {
  const Tokenizer tokenizer = tokenizer_of(test::tiny_vocabulary());
  EXPECT_THROW(tokenizer.decode(-1), InvalidArgument);
  EXPECT_THROW(tokenizer.decode(tokenizer.size()), InvalidArgument);
}

TEST(TextStream, HoldsBackUnfinishedCharacters) {
  TextStream stream;
  EXPECT_EQ(stream.push("a\xE2\x82"), "a");
  EXPECT_EQ(stream.push("\xAC!"), "€!");
  EXPECT_EQ(stream.push("\xF0\x9F"), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextStream, ReplacesBytesThatAreNoCharacter) {
  TextStream stream;
  EXPECT_EQ(stream.push("a\x80z"), "a\uFFFDz");
  EXPECT_EQ(stream.push("\xE2"), "");
  EXPECT_EQ(stream.push("("), "\uFFFD(");
}

}  // namespace
}  // namespace kvmesh::engine
