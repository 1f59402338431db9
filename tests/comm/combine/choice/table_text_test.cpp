#include "comm/combine/choice/table_text.hpp"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

constexpr std::string_view kKey = "kvmesh 1; 2 ranks; NVIDIA H200";

WayTable sample() {
  WayTable table;
  table.add({WayKind::kPeer, CombineStrategy::kAllToAll}, Scatter::kHeads, {16512, 3.25});
  table.add({WayKind::kPeer, CombineStrategy::kAllToAll}, Scatter::kHeads, {2113536, 5.5});
  table.add({WayKind::kNccl, CombineStrategy::kReduceScatter}, Scatter::kAll, {16512, 1234.75});
  table.read_gbs = 4100.5;
  return table;
}

TEST(TableText, RoundTrips) {
  EXPECT_EQ(table_from(kKey, to_text(kKey, sample())), sample());
  EXPECT_EQ(table_from(kKey, to_text(kKey, {})), WayTable{});
  WayTable without_rate = sample();
  without_rate.read_gbs = 0;
  EXPECT_EQ(table_from(kKey, to_text(kKey, without_rate)), without_rate);
}

TEST(TableText, IsReadable) {
  const std::string text = to_text(kKey, sample());
  EXPECT_NE(text.find("\npeer all_to_all heads 16512:3.25 2113536:5.50\n"), std::string::npos)
      << text;
  EXPECT_NE(text.find("\nread 4100.50\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\nnccl reduce_scatter all 16512:1234.75\n"), std::string::npos) << text;
}

TEST(TableText, IsForOneKey) {
  const std::string text = to_text(kKey, sample());
  EXPECT_FALSE(table_from("kvmesh 1; 2 ranks; NVIDIA H100", text));
  EXPECT_FALSE(table_from(kKey.substr(0, kKey.size() - 1), text));
  EXPECT_FALSE(table_from("", text));
}

TEST(TableText, DetectsChangeOfAnyByte) {
  const std::string text = to_text(kKey, sample());
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x01);
    EXPECT_FALSE(table_from(kKey, damaged)) << "byte " << i;
  }
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(table_from(kKey, text.substr(0, size))) << "cut to " << size;
  }
  EXPECT_FALSE(table_from(kKey, text + "\n"));
  EXPECT_FALSE(table_from(kKey, text + text));
}

}  // namespace
}  // namespace kvmesh
