#include "launch/common/scale_flag.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"

namespace kvmesh::launch {
namespace {

TEST(ScaleFlag, ReadsTheValuesThatItPrints) {
  EXPECT_EQ(typed(ScaleKind::kPerTokenAndHead), "per_token_and_head");
  for (const ScaleKind kind :
       {ScaleKind::kPerTensor, ScaleKind::kPerTokenAndHead, ScaleKind::kPerHead}) {
    EXPECT_EQ(scale_kind_from(typed(kind)), kind);
  }
}

TEST(ScaleFlag, RejectsOtherValues) {
  for (const char* text : {"", "per head", "per_page", "PER_HEAD"}) {
    EXPECT_THROW(scale_kind_from(text), InvalidArgument) << text;
  }
}

}  // namespace
}  // namespace kvmesh::launch
