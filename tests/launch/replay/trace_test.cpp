// Traces: what is read from files, what is refused, and what is drawn.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>

#include "launch/replay/statistics.hpp"
#include "launch/replay/trace.hpp"

namespace kvmesh::replay {
namespace {

class TraceFile : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  std::string write(const std::string& text) {
    std::ofstream(path_) << text;
    return path_.string();
  }
  std::string refusal(const std::string& text) {
    try {
      read_trace(write(text));
    } catch (const TraceError& error) {
      return error.what();
    }
    return "taken";
  }

  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() /
      (std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + ".trace");
};

std::string mooncake(const std::string& timestamp, int input, const std::string& ids) {
  return R"({"timestamp": )" + timestamp + R"(, "input_length": )" + std::to_string(input) +
         R"(, "output_length": 5, "hash_ids": [)" + ids + "]}\n";
}

TEST_F(TraceFile, ReadsMooncakeByArrival) {
  const Trace trace =
      read_trace(write(mooncake("4500", 600, "0, 7") + mooncake("3000", 512, "9") + "\n"));
  ASSERT_EQ(trace.requests.size(), 2u);
  EXPECT_EQ(trace.requests[0].blocks, std::vector<std::uint32_t>{9});
  EXPECT_EQ(trace.requests[0].arrival_s, 0);
  EXPECT_EQ(trace.requests[1].arrival_s, 1.5);
  EXPECT_EQ(trace.requests[1].prompt_tokens, 600);
  EXPECT_EQ(trace.requests[1].answer_tokens, 5);
  EXPECT_EQ(trace.prompt_tokens(), 1112);
}

TEST_F(TraceFile, ReadsAzureWithoutSharing) {
  const Trace trace =
      read_trace(write("TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
                       "2023-11-16 23:59:59.5000000,600,10\r\n2023-11-17 00:00:01.0000000,600,8"));
  ASSERT_EQ(trace.requests.size(), 2u);
  EXPECT_DOUBLE_EQ(trace.requests[1].arrival_s, 1.5);
  EXPECT_EQ(trace.requests[1].answer_tokens, 8);
  std::set<std::uint32_t> blocks;
  for (const Request& request : trace.requests)
    blocks.insert(request.blocks.begin(), request.blocks.end());
  EXPECT_EQ(blocks.size(), 4u);
}

TEST_F(TraceFile, NamesTheLineThatIsWrong) {
  const std::string good = mooncake("0", 600, "0, 7");
  for (const auto& [bad, said] : std::vector<std::pair<std::string, std::string>>{
           {"{\"timestamp\": 0", "no JSON object"},
           {"[1]", "no JSON object"},
           {"{\"input_length\": 1}", "no number timestamp"},
           {mooncake("\"x\"", 600, "0, 7"), "no number timestamp"},
           {mooncake("0", 0, ""), "input_length is 0"},
           {mooncake("0", 2000000000, ""), "input_length is 2000000000"},
           {R"({"timestamp": 0, "input_length": 600.9})", "input_length is 600.9, no integer"},
           {R"({"timestamp": 0, "input_length": 1e30})", "no integer"},
           {R"({"timestamp": 0, "input_length": 18446744073709551615})", "not in [1, "},
           {mooncake("0", 600, "0"), "1 hash ids for 600 tokens"},
           {mooncake("0", 600, "0, -1"), "hash id -1"},
           {mooncake("0", 600, "0, 2147483648"), "hash id 2147483648"},
           {mooncake("0", 600, "0, 1.5"), "hash id 1.5"}}) {
    const std::string message = refusal(good + bad);
    EXPECT_NE(message.find(path_.string() + ":2: "), std::string::npos) << message;
    EXPECT_NE(message.find(said), std::string::npos) << message;
  }
  const std::string header = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
  for (const std::string bad :
       {"x", "2023-11-16", "2023-11-16 18:17:03.9,1", "2023-11-16 18:17:03.9,1,2,3",
        "2023-11-16 18:17:03.9,one,2", "2023-11-16 18:17:03.9,-4,2", "2023-11-16 18:17:nan,4,2",
        "2023-11-16 18:17:inf,4,2", "2023-11-31 18:17:03.9,4,2", "2023-11-16 24:17:03.9,4,2"}) {
    EXPECT_NE(refusal(header + bad).find(".trace:2: "), std::string::npos) << bad;
  }
  EXPECT_NE(refusal("").find("no request in it"), std::string::npos);
  EXPECT_NE(refusal(header).find("no request in it"), std::string::npos);
  EXPECT_THROW(read_trace("/nowhere/trace"), TraceError);
  EXPECT_THROW(read_trace(std::filesystem::temp_directory_path().string()), TraceError);
}

TEST_F(TraceFile, RefusesIdsOfAnyDepthAndLength) {
  const std::string deep = std::string(100'000, '[') + std::string(100'000, ']');
  EXPECT_TRUE(
      refusal(mooncake("0", 512, deep)).ends_with(":1: a hash id is no number: its type is array"));
  const std::string text = '"' + std::string(100'000, 'x') + '"';
  EXPECT_TRUE(refusal(mooncake("0", 512, text)).ends_with("its type is string"));
}

TEST_F(TraceFile, NamesTheLineAtWhichPromptsAreTooManyTogether) {
  const std::string two = mooncake("0", 600, "0, 1");
  write(two + two + "\n" + two);
  EXPECT_EQ(read_trace(path_.string(), 6).requests.size(), 3u);
  try {
    read_trace(path_.string(), 5);
    FAIL() << "taken";
  } catch (const TraceError& error) {
    EXPECT_NE(std::string(error.what()).find(":4: up to here the prompts have 6 blocks"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(TraceFile, RefusesALineWithoutEnd) {
  try {
    read_trace("/dev/zero");
    FAIL() << "taken";
  } catch (const TraceError& error) {
    EXPECT_STREQ(error.what(), "/dev/zero:1: a line of more than 32 MiB");
  }
}

TEST_F(TraceFile, SortsDaysOfDifferentMonths) {
  const Trace trace =
      read_trace(write("TIMESTAMP,ContextTokens,GeneratedTokens\n"
                       "2023-12-01 00:00:01.0,7,1\n2023-11-30 23:59:59.0,600,1"));
  EXPECT_EQ(trace.requests[0].prompt_tokens, 600);
  EXPECT_DOUBLE_EQ(trace.requests[1].arrival_s, 2);
}

TEST(Trace, TokensFollowFromBlocksAlone) {
  const Request one{.prompt_tokens = 700, .blocks = {3, 4}},
      two{.prompt_tokens = 600, .blocks = {3, 5}};
  const auto first = prompt_of(one), second = prompt_of(two);
  ASSERT_EQ(first.size(), 700u);
  ASSERT_EQ(second.size(), 600u);
  EXPECT_TRUE(std::equal(first.begin(), first.begin() + 512, second.begin()));
  EXPECT_NE(first[512], second[512]);
  EXPECT_GE(*std::ranges::min_element(first), 0);
  EXPECT_EQ(answer_of(1, 5, 3)[0], answer_of(1, 0, 8)[5]);
  EXPECT_NE(answer_of(1, 0, 8), answer_of(2, 0, 8));
}

TEST(Trace, DrawnRequestsHaveTheLengthsOfTheTrace) {
  for (const Statistics& statistics : kTraces) {
    const Trace trace = generated_trace(statistics.name, 4000, 11);
    std::vector<std::int64_t> lengths;
    std::size_t shared = 0;
    std::set<std::uint32_t> seen;
    for (const Request& request : trace.requests) {
      lengths.push_back(request.prompt_tokens);
      ASSERT_EQ(std::ssize(request.blocks), (request.prompt_tokens + 511) / 512);
      shared += request.blocks.size() > 1 && seen.contains(request.blocks[1]);
      seen.insert(request.blocks.begin(), request.blocks.end());
    }
    std::ranges::sort(lengths);
    for (std::size_t i = 3; i < 8; ++i) {  // the middle quantiles
      const auto got = static_cast<double>(lengths[static_cast<std::size_t>(kQuantiles[i] * 3999)]);
      EXPECT_NEAR(got / statistics.prompt[i], 1, 0.35) << statistics.name << " " << kQuantiles[i];
    }
    EXPECT_NEAR(static_cast<double>(shared) / 4000, statistics.sharing.continues, 0.12)
        << statistics.name;
  }
  EXPECT_THROW(generated_trace("other", 1, 1), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::replay
