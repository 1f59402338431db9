// check_integrity() finds each kind of damage.
#include "allocator/integrity.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

constexpr int kPage = 4;

/// A sound state: `a` has 10 tokens in 3 pages on two ranks; `b` shares two of them.
class Integrity : public testing::Test {
 protected:
  void SetUp() override {
    a = table.create();
    b = table.create();
    Sequence& first = table.at(a);
    Sequence& second = table.at(b);
    first.pages = {pools.take(PageRank{0}), pools.take(PageRank{1}), pools.take(PageRank{0})};
    first.length = 10;
    first.may_share = true;
    first.placement.pages_on = std::make_unique<std::int32_t[]>(2);
    first.placement.pages_on[0] = 2;
    first.placement.pages_on[1] = 1;
    second.pages = {first.pages[0], first.pages[1]};
    second.length = 8;
    second.may_share = true;
    for (PageId page : second.pages) pools.add_reference(page);
    ASSERT_NO_THROW(check());
  }

  void check() const { check_integrity(pools, table, kPage); }

  void expect_broken(const std::string& about) const {
    try {
      check();
      ADD_FAILURE() << "the damage was not noticed; expected: " << about;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(about), std::string::npos) << error.what();
    }
  }

  PagePools pools{2, 6};
  SequenceTable table{7};
  SequenceId a;
  SequenceId b;
};

TEST_F(Integrity, LostPage) {
  (void)pools.take(PageRank{1});
  expect_broken("0 sequences hold it");
}

TEST_F(Integrity, AMarkWithoutAMove) {
  pools.begin_move(table.at(a).pages[0]);
  expect_broken("marked as moving");
}

TEST_F(Integrity, OneReferenceTooMany) {
  pools.add_reference(table.at(a).pages[2]);
  expect_broken("2 references and 1 sequences");
}

TEST_F(Integrity, OneReferenceTooFew) {
  pools.give_back(table.at(a).pages[0]);
  expect_broken("1 references and 2 sequences");
}

TEST_F(Integrity, FreePageInATable) {
  pools.give_back(table.at(a).pages[2]);
  expect_broken("not handed out");
}

TEST_F(Integrity, PageFreedTwice) {
  const PageId page = table.at(a).pages[2];
  table.at(a).pages.pop_back();
  table.at(a).length = 8;
  table.at(a).placement.removed(PageRank{0});
  pools.give_back(page);
  ASSERT_NO_THROW(check());
  pools.give_back(page);
  expect_broken("free list");
}

TEST_F(Integrity, PageTwiceInOneTable) {
  Sequence& sequence = table.at(a);
  sequence.pages.push_back(sequence.pages[0]);
  sequence.length = 16;
  pools.add_reference(sequence.pages[0]);
  expect_broken("is logical page 0 of one sequence and 3");
}

TEST_F(Integrity, PageInNoPool) {
  table.at(a).pages[0] = PageId{};
  expect_broken("not in any pool");
  table.at(a).pages[0] = PageId{PageRank{2}, 0};
  expect_broken("not in any pool");
  table.at(a).pages[0] = PageId{PageRank{1}, 6};
  expect_broken("not in any pool");
}

TEST_F(Integrity, LengthPastTheCapacity) {
  table.at(a).length = 13;
  expect_broken("13 tokens in 3 pages");
  table.at(a).length = -1;
  expect_broken("-1 tokens");
}

TEST_F(Integrity, SharedPageWithoutContent) {
  table.at(b).length = 4;
  expect_broken("has no content of it");
}

TEST_F(Integrity, SharerWithoutTheFlag) {
  table.at(b).may_share = false;
  expect_broken("without its flag");
}

TEST_F(Integrity, WrongCountsPerRank) {
  table.at(a).placement.pages_on[1] = 2;
  expect_broken("on rank 1 and counts 2");
}

TEST_F(Integrity, AnchorOnNoRank) {
  table.at(a).placement.anchor = 2;
  expect_broken("starts on rank 2");
}

}  // namespace
}  // namespace kvmesh
