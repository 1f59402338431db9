#include "launch/engine/gguf/gguf.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "tests/launch/tiny_gguf.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::engine {
namespace {

using test::GgufWriter;
using test::TemporaryFile;

/// The error of opening `bytes`; empty if it opens.
std::string error_of(std::string_view bytes) {
  const TemporaryFile file(bytes);
  try {
    const GgufFile opened(file.path());
    return "";
  } catch (const ModelError& error) {
    return error.what();
  }
}

void expect_one_line_with(const std::string& message, std::string_view part) {
  EXPECT_NE(message.find(part), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(Gguf, ReadsEveryKindOfValue) {
  GgufWriter writer;
  writer.text("t", "hello");
  writer.integer("i", 4'000'000'000u);
  writer.real("r", 0.5f);
  writer.flag("f", true);
  writer.texts("ts", std::vector<std::string>{"a", "", "c"});
  writer.integers("is", std::vector<std::int32_t>{-1, 7});
  const TemporaryFile file(writer.bytes());
  const GgufFile gguf(file.path());
  EXPECT_EQ(gguf.version(), 3u);
  EXPECT_EQ(gguf.get<std::string_view>("t"), "hello");
  EXPECT_EQ(gguf.get<std::int64_t>("i"), 4'000'000'000);
  EXPECT_EQ(gguf.get<double>("r"), 0.5);
  EXPECT_TRUE(gguf.get<bool>("f"));
  EXPECT_EQ(gguf.get<std::vector<std::string_view>>("ts"),
            (std::vector<std::string_view>{"a", "", "c"}));
  EXPECT_EQ(gguf.get<std::vector<std::int64_t>>("is"), (std::vector<std::int64_t>{-1, 7}));
  EXPECT_EQ(gguf.find<bool>("absent"), nullptr);
  EXPECT_THROW(gguf.get<bool>("absent"), ModelError);
  EXPECT_THROW(gguf.find<bool>("t"), ModelError);
}

TEST(Gguf, FindsTensors) {
  GgufWriter writer;
  const std::vector<float> values{1, 2, 3, 4, 5, 6};
  writer.tensor("first", WeightType::kF32, {1}, "abcd");
  writer.tensor("second", WeightType::kF32, {3, 2}, test::encode_weights(WeightType::kF32, values));
  const TemporaryFile file(writer.bytes());
  GgufFile gguf = GgufFile(file.path());  // moved objects keep their views
  const GgufTensor& tensor = gguf.tensor("second");
  EXPECT_EQ(tensor.shape, (std::array<std::int64_t, 4>{3, 2, 1, 1}));
  std::vector<float> read(6);
  ASSERT_EQ(gguf.data(tensor).size(), 24u);
  dequantize(tensor.type, gguf.data(tensor).data(), read);
  EXPECT_EQ(read, values);
  EXPECT_THROW(gguf.tensor("third"), ModelError);
}

TEST(Gguf, ErrorsNameProblemAndRemedy) {
  try {
    const GgufFile absent("/nowhere/model.gguf");
    FAIL() << "opened a missing file";
  } catch (const ModelError& error) {
    expect_one_line_with(error.what(), "/nowhere/model.gguf: cannot read the model: No such file");
  }
  expect_one_line_with(error_of(""), "empty; download it again");
  expect_one_line_with(error_of("PK\3\4 something else"), "not a GGUF file");
  expect_one_line_with(error_of(std::string("GGUF\1\0\0\0", 8)), "version 1 is not supported");
  expect_one_line_with(error_of(std::string("GGUF\0\0\0\3", 8)), "big-endian");
  GgufWriter part;
  part.integer("split.no", 1);
  part.integer("split.count", 3);
  expect_one_line_with(error_of(part.bytes()), "part 2 of a model that is split into 3 files");
  GgufWriter whole;
  whole.integer("split.count", 1);
  EXPECT_EQ(error_of(whole.bytes()), "");
  std::string model = test::tiny_model();
  expect_one_line_with(error_of(model.substr(0, 100)), "truncated");
  expect_one_line_with(error_of(model.substr(0, model.size() - 5000)), "truncated: tensor blk.1.");
  expect_one_line_with(error_of(model.substr(0, model.size() - 5000)), "download it again");
}

TEST(Gguf, RefusesContradictions) {
  GgufWriter twice;
  twice.integer("general.alignment", 32);
  twice.integer("general.alignment", 32);
  expect_one_line_with(error_of(twice.bytes()), "appears twice");
  GgufWriter alignment;
  alignment.integer("general.alignment", 12);
  expect_one_line_with(error_of(alignment.bytes()), "general.alignment is 12");
  GgufWriter ragged;
  ragged.tensor("w", WeightType::kQ4_0, {33, 2}, std::string(100, '\0'));
  expect_one_line_with(error_of(ragged.bytes()), "rows of 33 elements");
  GgufWriter huge;
  huge.tensor("w", WeightType::kF32, {1ull << 40, 1ull << 40}, "");
  expect_one_line_with(error_of(huge.bytes()), "impossible shape");
  GgufWriter empty;
  empty.tensor("w", WeightType::kF32, {0}, "");
  expect_one_line_with(error_of(empty.bytes()), "impossible shape");
  GgufWriter name;
  name.tensor("evil\nname", WeightType::kF32, {8}, "");
  expect_one_line_with(error_of(name.bytes()), "evil?name");
}

TEST(Gguf, EveryTruncationIsAModelError) {
  const std::string model = test::tiny_model({.layers = 1});
  const std::size_t header = model.size() / 2;
  for (std::size_t size = 0; size < model.size(); size += size < header ? 97 : 1009) {
    EXPECT_NE(error_of(std::string_view(model).substr(0, size)), "") << "cut to " << size;
  }
}

/// Reads everything that the accessors return: data outside the file would crash or be reported.
std::uint64_t checksum(const GgufFile& gguf) {
  std::uint64_t sum = 0;
  for (const auto& [key, value] : gguf.metadata()) {
    for (char c : key) sum += static_cast<std::uint8_t>(c);
    if (const auto* text = std::get_if<std::string_view>(&value)) {
      for (char c : *text) sum += static_cast<std::uint8_t>(c);
    }
  }
  for (const auto& [name, tensor] : gguf.tensors()) {
    for (std::byte byte : gguf.data(tensor)) sum += static_cast<std::uint64_t>(byte);
  }
  return sum;
}

// The bytes past the new end are read in a child, which then ends with a message.
TEST(GgufDeathTest, NamesAFileThatShrinksWhileOpen) {
  const std::string model = test::tiny_model();
  const TemporaryFile file(model);
  const GgufFile gguf(file.path());
  const auto read = [&] {
    std::filesystem::resize_file(file.path(), 1000);
    std::exit(checksum(gguf) > 0 ? 0 : 1);
  };
  EXPECT_EXIT(read(), testing::ExitedWithCode(2), "cut short while it was read; copy it again");
}

TEST(Gguf, DamagedBytesEitherLoadOrAreAModelError) {
  const std::uint64_t seed = test::seed_or(20);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  test::Random random(seed);
  const std::string model = test::tiny_model({.layers = 1});
  const std::size_t header = model.find("blk.0.ffn_down.weight") + 60;
  const TemporaryFile file(model);
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string damaged = model;
    for (std::int64_t i = random.integer(1, 4); i > 0; --i) {
      const auto at = random.integer(0, static_cast<std::int64_t>(header) - 1);
      damaged[static_cast<std::size_t>(at)] = static_cast<char>(random.integer(0, 255));
    }
    file.rewrite(damaged);
    try {
      EXPECT_GT(checksum(GgufFile(file.path())), 0u);
    } catch (const ModelError& error) {
      ++refused;
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace kvmesh::engine
