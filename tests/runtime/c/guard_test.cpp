// The status that a C function returns for an exception, and the text that it keeps.
#include "runtime/c/guard.hpp"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "kvmesh/error.hpp"

namespace kvmesh {
namespace {

TEST(CGuard, ReturnsOutOfMemoryWhereTheHostHasNone) {
  EXPECT_EQ(c::guarded([] { throw std::bad_alloc(); }), KVMESH_OUT_OF_MEMORY);
  EXPECT_STREQ(kvmesh_last_error(), "the host is out of memory");
}

TEST(CGuard, ReturnsTheCodeOfAnErrorOfTheLibrary) {
  EXPECT_EQ(c::guarded([] { throw InvalidArgument("a number"); }), KVMESH_INVALID_ARGUMENT);
  EXPECT_STREQ(kvmesh_last_error(), "a number");
}

TEST(CGuard, ReturnsAnErrorForAnyOtherException) {
  EXPECT_EQ(c::guarded([] { throw std::runtime_error("other"); }), KVMESH_ERROR);
  EXPECT_STREQ(kvmesh_last_error(), "other");
  EXPECT_EQ(c::guarded([] { throw 1; }), KVMESH_ERROR);
}

TEST(CGuard, KeepsTheTextOfEachThread) {
  c::guarded([] { throw InvalidArgument("of this thread"); });
  std::string at_first, then;
  std::thread([&] {
    at_first = kvmesh_last_error();
    c::guarded([] { throw InvalidArgument("of another thread"); });
    then = kvmesh_last_error();
  }).join();
  EXPECT_EQ(at_first, "");
  EXPECT_EQ(then, "of another thread");
  EXPECT_STREQ(kvmesh_last_error(), "of this thread");
}

}  // namespace
}  // namespace kvmesh
