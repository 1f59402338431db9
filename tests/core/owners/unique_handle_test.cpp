#include "core/owners/unique_handle.hpp"

#include <gtest/gtest.h>

#include <utility>

namespace kvmesh {
namespace {

/// A handle as C libraries have them: a pointer to a struct, and a function with a status.
struct Object {
  int destroyed = 0;
};
int destroy(Object* object) { return ++object->destroyed; }
using Owner = UniqueHandle<Object*, destroy>;

TEST(UniqueHandle, DestroysItsHandleOnce) {
  Object object;
  {
    Owner first(&object);
    const Owner second = std::move(first);
    EXPECT_EQ(first.get(), nullptr);
    EXPECT_EQ(second.get(), &object);
    EXPECT_EQ(object.destroyed, 0);
  }
  EXPECT_EQ(object.destroyed, 1);
}

TEST(UniqueHandle, DestroysWhatItReplaces) {
  Object object, other;
  Owner owner(&object);
  owner.reset(&other);
  EXPECT_EQ(object.destroyed, 1);
  EXPECT_EQ(other.destroyed, 0);
}

TEST(UniqueHandle, DestroysNoNullHandle) {
  static_assert(sizeof(Owner) == sizeof(Object*));
  const Owner none;  // destroy(nullptr) would crash
  EXPECT_EQ(none.get(), nullptr);
}

}  // namespace
}  // namespace kvmesh
