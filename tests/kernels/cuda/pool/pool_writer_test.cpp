#include "kernels/cuda/pool/pool_writer.hpp"

#include <gtest/gtest.h>

#include "kvmesh/error.hpp"
#include "tests/support/owned_tensor.hpp"

namespace kvmesh::cuda {
namespace {

TEST(PoolWriter, RejectsScalesOfTwoKinds) {
  test::OwnedTensor rows(Dtype::kFloat8E4M3, {2, 1, 4, 16}), scales(Dtype::kFloat32, {2, 1, 4, 1});
  KvPool pool{rows.view(), rows.view()};
  EXPECT_NO_THROW(PoolWriter::check(pool));
  pool.k_scale.per_token = scales.view();
  EXPECT_THROW(PoolWriter::check(pool), InvalidArgument);
  pool.v_scale.per_token = scales.view();
  EXPECT_NO_THROW(PoolWriter::check(pool));
}

}  // namespace
}  // namespace kvmesh::cuda
