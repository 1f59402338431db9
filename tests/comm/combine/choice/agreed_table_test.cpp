#include "comm/combine/choice/agreed_table.hpp"

#include <gtest/gtest.h>

#include "comm/combine/choice/combine_ways.hpp"
#include "comm/combine/choice/measure_ways.hpp"
#include "tests/comm/combine/choice/agreed_table_case.hpp"
#include "tests/support/environment.hpp"

namespace kvmesh::test {
namespace {

TEST(AgreedWayTable, HasEachWayForEachScatter) {
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    const auto table = rank.agree(TableUse::kOn);
    ASSERT_TRUE(table);
    EXPECT_TRUE(rank.is_same_on_all(*table));
    for (const WayKind way : {WayKind::kHost, WayKind::kHierarchical}) {
      for (const Scatter scatter : {Scatter::kHeads, Scatter::kAll}) {
        const auto few = table->microseconds({way, CombineStrategy::kAllToAll}, scatter, 1000);
        const auto many = table->microseconds({way, CombineStrategy::kAllToAll}, scatter, 1 << 21);
        ASSERT_TRUE(few && many) << name(way) << " to " << name(scatter);
        EXPECT_GT(*few, 0);
        EXPECT_GT(*many, *few) << name(way) << " to " << name(scatter);
      }
    }
    EXPECT_EQ(table->ways.size(), 4u);
  });
}

TEST(AgreedWayTable, IsReadFromTheFileUntilItIsMeasuredAgain) {
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    const auto measured = rank.agree(TableUse::kOn);
    if (rank.is_first()) {
      const std::string text = text_of(rank.file());
      EXPECT_EQ(table_from(key_in(text), text), *measured);
      write_text(rank.file(), to_text(key_in(text), made_up_table(5)));
    }
    EXPECT_EQ(*rank.agree(TableUse::kOn), made_up_table(5));
    const auto anew = rank.agree(TableUse::kNew);
    EXPECT_NE(*anew, made_up_table(5));
    EXPECT_TRUE(rank.is_same_on_all(*anew));
    EXPECT_EQ(*rank.agree(TableUse::kOn), *anew);
  });
}

TEST(AgreedWayTable, IsMeasuredIfTheFileIsDamagedOrOfOtherRanks) {
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    rank.agree(TableUse::kOn);
    std::string good;
    if (rank.is_first()) good = text_of(rank.file());
    const std::string other = rank.is_first() ? to_text("other ranks", made_up_table(5)) : "";
    for (const std::string& bad : {good.substr(0, good.size() / 2), std::string(), other}) {
      if (rank.is_first()) write_text(rank.file(), bad);
      const auto table = rank.agree(TableUse::kOn);
      EXPECT_EQ(table->ways.size(), 4u);
      EXPECT_NE(*table, made_up_table(5));
      if (rank.is_first()) {
        const std::string now = text_of(rank.file());
        EXPECT_EQ(table_from(key_in(good), now), *table) << "the file is good again";
      }
    }
  });
}

TEST(AgreedWayTable, RankZeroDecides) { run_loopback(4, expect_rank_0_decides); }

TEST(AgreedWayTable, NeedsNoFolder) {
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    EXPECT_TRUE(agreed_way_table(rank.group(), TableUse::kOn, {}));
    write_text(rank.folder() / "file", "");
    EXPECT_TRUE(agreed_way_table(rank.group(), TableUse::kOn, rank.folder() / "file" / "below"));
  });
}

TEST(AgreedWayTable, IsNotUsedOnCpusUnlessAskedFor) {
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    EXPECT_FALSE(rank.agree(TableUse::kAuto));
    EXPECT_FALSE(rank.agree(TableUse::kOff));
    EXPECT_FALSE(rank.has_file());
  });
}

TEST(AgreedWayTable, IsNotUsedWhereAWayIsPreferred) {
  const Variable way("KVMESH_COMBINE_WAY", "host");
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    EXPECT_FALSE(rank.agree(TableUse::kOn));
  });
}

TEST(AgreedWayTable, SendsNothingWhereThereIsOneWay) {
  run_loopback(4, [](Communicator& comm) {
    RankWithFolder rank(comm);
    rank.group().set_hosts({.hosts = 1, .per_host = 4});
    const std::uint64_t before = comm.sent_bytes();
    EXPECT_FALSE(has_choice_of_ways(rank.group()));
    EXPECT_FALSE(rank.agree(TableUse::kNew));
    EXPECT_EQ(comm.sent_bytes(), before);
  });
}

/// The group's combines follow the table.
TEST(AgreedWayTable, IsUsedByTheGroup) {
  const TemporaryDirectory folder;
  const Variable cache("KVMESH_CACHE_DIR", folder.path().c_str());
  const Variable use("KVMESH_COMBINE_TABLE", "on");
  run_loopback(4, [&](Communicator& comm) {
    RankWithFolder rank(comm);
    DeviceGroup& group = rank.group();
    EXPECT_EQ(group.way_table(), nullptr);
    group.prepare_ways();
    ASSERT_NE(group.way_table(), nullptr);
    EXPECT_TRUE(rank.is_same_on_all(*group.way_table()));
    EXPECT_EQ(CombineWays(group).means().table, group.way_table());
    EXPECT_EQ(folder.files(), 1u);
  });
}

TEST(TableUse, ComesFromTheEnvironment) {
  const auto use = [](const char* value) {
    const Variable given("KVMESH_COMBINE_TABLE", value);
    return table_use_of_environment();
  };
  EXPECT_EQ(use(nullptr), TableUse::kAuto);
  EXPECT_EQ(use(""), TableUse::kAuto);
  EXPECT_EQ(use("off"), TableUse::kOff);
  EXPECT_EQ(use("auto"), TableUse::kAuto);
  EXPECT_EQ(use("on"), TableUse::kOn);
  EXPECT_EQ(use("new"), TableUse::kNew);
  EXPECT_THROW(use("yes"), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
