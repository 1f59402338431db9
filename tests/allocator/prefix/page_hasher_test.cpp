#include "allocator/prefix/page_hasher.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include <numeric>
#include <string>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

std::string hex(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::vector<std::int32_t> counted(std::int32_t first, std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Results of vLLM's sha256_cbor.
TEST(PrefixHashes, EqualThoseOfVllm) {
  PrefixKey key(PrefixRules{});
  EXPECT_EQ(hex(key.root().bytes),
            "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0");
  key.append(counted(1, 5));  // in pieces that end inside of pages
  key.append(counted(6, 27));
  key.append(counted(33, 3));
  ASSERT_EQ(key.hashes().size(), 2u);
  EXPECT_EQ(hex(key.hashes()[0].bytes),
            "cd7c51bc5a8fc8643f383a2b9e01522fba7473c669e9270c7b0bf7bf7fd01682");
  EXPECT_EQ(event_id(key.hashes()[0]), 8866452693264111234u);
  EXPECT_EQ(hex(key.hashes()[1].bytes),
            "2533ea50426b36e9e4d68296cac6bce8cf602e46957d0fe40b368b33d87bf3bf");
  EXPECT_EQ(event_id(key.hashes()[1]), 807986237951177663u);

  PrefixKey salted(PrefixRules{}, {.salt = "tenant-a"});
  salted.append(counted(1, 16));
  EXPECT_EQ(hex(salted.hashes()[0].bytes),
            "d4fdd9f3dab139eafd01550f43781481256e9531b59b55ea4656df8f49124fcf");
  EXPECT_EQ(event_id(salted.hashes()[0]), 5068484237151326159u);

  PrefixKey widths(PrefixRules{.page_size = 8});
  widths.append(std::vector<std::int32_t>{0, 23, 24, 255, 256, 65535, 65536, 2147483647});
  EXPECT_EQ(hex(widths.hashes()[0].bytes),
            "c6f01498d6bdfd373483df00b7895cc293f3a17a5a61e68b65a9105d945c0f09");
  EXPECT_EQ(event_id(widths.hashes()[0]), 7325404263001886473u);
}

// A parent of another length than a hash: only through the writer.
TEST(PrefixHashes, WriteCanonicalCbor) {
  std::vector<std::uint8_t> bytes;
  CborWriter out(bytes);
  out.array(3);
  out.bytes(std::vector<std::uint8_t>(4));
  out.array(3);
  for (const int token : {1, 2, 300}) out.integer(token);
  out.null();
  EXPECT_EQ(hex(bytes), "83440000000083010219012cf6");
  PageHasher hasher(PrefixHash::kSha256Cbor);
  const PageHash hash = hasher.digest(bytes);
  EXPECT_EQ(hex(hash.bytes), "086539f75f6da02cc6261feda4f174659e95903a77088acf81e22bb37e456411");
  EXPECT_EQ(event_id(hash), 9359091025546929169u);

  bytes.clear();
  for (const std::int64_t value : {-1, -25, -300}) out.integer(value);
  out.integer(std::int64_t{1} << 40);
  EXPECT_EQ(hex(bytes),
            "20"
            "3818"
            "39012b"
            "1b0000010000000000");
}

TEST(PrefixHashes, IncludeExtraKeysInOrderOnTheirPages) {
  const PrefixExtras extras{
      .adapter = PrefixExtras::Adapter{"a", "p"}, .items = {{"x", 2, 4}, {"y", 6, 1}}, .salt = "s"};
  // [["lora","a","p"],["mm","x",2],["cache_salt","s"]]
  EXPECT_EQ(hex(extra_keys(extras, 0, 4)),
            "83"
            "83646c6f726161616170"
            "83626d6d617802"
            "826a63616368655f73616c746173");
  // The second page begins 2 tokens after item x, and item y is on it.
  EXPECT_EQ(hex(extra_keys(extras, 4, 4)),
            "83"
            "83646c6f726161616170"
            "83626d6d617821"
            "83626d6d617902");
  EXPECT_EQ(hex(extra_keys(extras, 8, 4)), "8183646c6f726161616170");
  EXPECT_TRUE(extra_keys({.salt = "s"}, 4, 4).empty());
}

std::array<std::uint8_t, 32> filled(std::uint8_t byte) {
  std::array<std::uint8_t, 32> hash;
  hash.fill(byte);
  return hash;
}

std::string repeated(const std::string& text, int times) {
  std::string all;
  while (times-- > 0) all += text;
  return all;
}

TEST(PrefixHashes, HaveEmbeddingsAsTheLastKeyOfTheirPages) {
  const PrefixExtras extras{.adapter = PrefixExtras::Adapter{"a", "p"},
                            .items = {{"x", 2, 4}},
                            .salt = "s",
                            .prompt_embeds = {filled(0xAB), filled(0xCD)}};
  // [["lora","a","p"],["mm","x",2],["cache_salt","s"],["prompt_embeds",h'ab...']]
  EXPECT_EQ(hex(extra_keys(extras, 0, 4)),
            "84"
            "83646c6f726161616170"
            "83626d6d617802"
            "826a63616368655f73616c746173"
            "826d70726f6d70745f656d62656473"
            "5820" +
                repeated("ab", 32));
  EXPECT_EQ(hex(extra_keys({.prompt_embeds = extras.prompt_embeds}, 4, 4)),
            "81"
            "826d70726f6d70745f656d62656473"
            "5820" +
                repeated("cd", 32));
  EXPECT_TRUE(extra_keys({.prompt_embeds = extras.prompt_embeds}, 8, 4).empty());
}

TEST(PrefixKeys, PagesPastTheEmbeddingsAreHashedAsOthers) {
  const std::vector<std::int32_t> tokens = counted(0, 30);
  const PrefixRules rules{.page_size = 4};
  const PrefixExtras extras{.prompt_embeds = {filled(1), filled(2), filled(3)}};
  PrefixKey whole(rules, extras), grown(rules, extras);
  whole.append(tokens);
  for (const std::int32_t token : tokens) grown.append({&token, 1});
  EXPECT_TRUE(std::ranges::equal(whole.hashes(), grown.hashes()));
  PageHasher hasher(rules.hash);
  PageHash parent = whole.root();
  for (std::size_t page = 0; page < 7; ++page) {
    const auto keys = extra_keys(extras, static_cast<std::int64_t>(4 * page), 4);
    EXPECT_EQ(keys.empty(), page >= 3);
    EXPECT_EQ(whole.has_items(static_cast<std::int64_t>(page)), page < 3);
    parent = hasher.page(parent, std::span(tokens).subspan(4 * page, 4), keys);
    EXPECT_EQ(whole.hashes()[page], parent) << page;
  }
}

TEST(PrefixHashes, DependOnEveryInput) {
  for (const PrefixHash kind : {PrefixHash::kSha256Cbor, PrefixHash::kXxh3}) {
    const auto hashes = [&](PrefixExtras extras, std::vector<std::int32_t> tokens,
                            std::string seed = "") {
      PrefixKey key({.hash = kind, .page_size = 2, .seed = seed}, std::move(extras));
      key.append(tokens);
      return std::vector<PageHash>(key.hashes().begin(), key.hashes().end());
    };
    const auto plain = hashes({}, {1, 2, 3, 4});
    EXPECT_EQ(plain, hashes({}, {1, 2, 3, 4, 5}));
    EXPECT_NE(plain[1], hashes({}, {1, 1, 3, 4})[1]) << "the parent counts";
    EXPECT_NE(plain[1], hashes({}, {3, 4})[0]);
    for (const auto& other :
         {hashes({.salt = "a"}, {1, 2, 3, 4}), hashes({.salt = "b"}, {1, 2, 3, 4}),
          hashes({.adapter = PrefixExtras::Adapter{"a", ""}}, {1, 2, 3, 4}),
          hashes({.items = {{"a", 0, 1}}}, {1, 2, 3, 4}),
          hashes({.prompt_embeds = {filled(0)}}, {1, 2, 3, 4}), hashes({}, {1, 2, 3, 4}, "seed")}) {
      EXPECT_NE(plain[0], other[0]);
      EXPECT_NE(plain[1], other[1]) << "through the parent";
    }
  }
}

TEST(PrefixKeys, TruncateCopyAndRejectNegativeTokens) {
  PrefixKey key(PrefixRules{.page_size = 4});
  key.append(counted(0, 10));
  PrefixKey fork = key;
  fork.truncate(7);
  EXPECT_EQ(fork.hashes().size(), 1u);
  EXPECT_EQ(key.hashes().size(), 2u);
  fork.append(std::vector<std::int32_t>{7});
  EXPECT_EQ(fork.hashes()[1], key.hashes()[1]);
  EXPECT_THROW(key.append(std::vector<std::int32_t>{1, -1}), InvalidArgument);
  EXPECT_EQ(key.tokens().size(), 10u);
  EXPECT_THROW(key.truncate(11), InvalidArgument);
  EXPECT_THROW(PrefixKey(PrefixRules{.page_size = 0}), InvalidArgument);
}

// A key of many pages at once has the hashes of one that grew token by token, and those of pages
// hashed one by one.
TEST(PageHasher, HashesRunsAsPages) {
  std::vector<std::int32_t> tokens(70);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i);
  for (const PrefixHash kind : {PrefixHash::kSha256Cbor, PrefixHash::kXxh3}) {
    for (const char* salt : {"", "tenant"}) {
      const PrefixRules rules{.hash = kind, .page_size = 16};
      PrefixKey whole(rules, {.salt = salt}), grown(rules, {.salt = salt});
      whole.append(tokens);
      for (const std::int32_t token : tokens) grown.append({&token, 1});
      ASSERT_EQ(whole.hashes().size(), 4u);
      EXPECT_TRUE(std::ranges::equal(whole.hashes(), grown.hashes()));
      PageHasher hasher(kind);
      PageHash parent = hasher.root("");
      for (std::size_t i = 0; i < 4; ++i) {
        const auto extras = extra_keys({.salt = salt}, static_cast<std::int64_t>(16 * i), 16);
        parent = hasher.page(parent, std::span(tokens).subspan(16 * i, 16), extras);
        EXPECT_EQ(whole.hashes()[i], parent);
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh
