// The status that a C function returns for an exception, and the text that it keeps.
#include "runtime/c/guard.hpp"

#include <gtest/gtest.h>

#include <new>
#include <stdexcept>

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

}  // namespace
}  // namespace kvmesh
