// PagedAttention with tensors and caches on GPUs, on the ranks of mpirun.
#include "tests/gpu/device_tensor.hpp"
#include "tests/runtime/torch_like/paged_case.hpp"

namespace kvmesh::test {
namespace {

/// Token-major, as a GPU takes them.
const Layout kTokens{.order = {0, 2, 1, 3}};

/// The tokens of a row as [1, H, S, D].
ConstTensorView row_view(const std::vector<float>& values, int heads, int dim) {
  const auto tokens = std::ssize(values) / (heads * dim);
  return {values.data(),
          Dtype::kFloat32,
          {1, heads, tokens, dim},
          {tokens * heads * dim, dim, heads * dim, 1}};
}

class PagedOnGpus : public testing::TestWithParam<Dtype> {};

TEST_P(PagedOnGpus, MatchesFloat64) {
  Mesh mesh(make_mpi_communicator(), {.threads = 1, .device = DeviceChoice::kCuda});
  use_device(mesh.device());  // where the tensors below go
  const PagedShape shape{.pages = 96,
                         .rows = 5,
                         .q_heads = 8,
                         .kv_heads = 2,
                         .k_dim = 64,
                         .v_dim = 64,
                         .dtype = GetParam()};
  PagedCase host(shape, {.query = kTokens});  // the numbers, and what is expected
  PagedAttention paged(mesh, shape.pages, shape.page_size, shape.rows, Placement::kStriped);
  DeviceTensor k_cache(host.k_cache.view()), v_cache(host.v_cache.view());  // poisoned
  const std::vector<std::int64_t> lengths{70, 1, 300, 16, 33};
  for (int row = 0; row < shape.rows; ++row) {
    const auto length = lengths[static_cast<std::size_t>(row)];
    host.assign(row, length);
    paged.reserve(row, length);
    const DenseSequence& dense = host.dense[static_cast<std::size_t>(row)];
    DeviceTensor k(row_view(dense.k, shape.kv_heads, shape.k_dim));
    DeviceTensor v(row_view(dense.v, shape.kv_heads, shape.v_dim));
    std::vector<std::int64_t> positions(static_cast<std::size_t>(length));
    std::iota(positions.begin(), positions.end(), 0);
    paged.assign(std::vector{row}, positions, k.view(), v.view(), k_cache.view(), v_cache.view());
  }

  for (const std::int64_t q_len : {1, 12, 60}) {
    const std::vector<std::int64_t> kv_lens{299, 64, 33, 1};
    PagedAttention::ForwardOptions options{
        .batch_indices = {2, 0, 4, 1}, .score_mod = mods::soft_cap(3.0f), .enable_gqa = true};
    OwnedTensor query = host.query(4, q_len);
    PagedResult result{OwnedTensor(Dtype::kFloat32, {4, 8, q_len, 64}, kTokens),
                       OwnedTensor(Dtype::kFloat32, {4, 8, q_len, 1}, kTokens)};
    DeviceTensor q(query.view()), out(result.out.view()), lse(result.lse.view());
    options.lse = lse.view();
    options.lse.dims = 3;
    paged.forward(q.view(), k_cache.view(), v_cache.view(), kv_lens, out.view(), options);
    out.download(result.out.view().data);
    lse.download(result.lse.view().data);
    // Tensor cores round queries and weights to 16 bits.
    EXPECT_TRUE(host.matches(result, query, kv_lens, options,
                             {.tolerance = GetParam() == Dtype::kFloat32 ? kTolerance : 1e-2}));
  }
}

INSTANTIATE_TEST_SUITE_P(PagedAttention, PagedOnGpus,
                         testing::Values(Dtype::kFloat32, Dtype::kBFloat16),
                         [](const auto& param) { return std::string(name(param.param)); });

TEST(PagedAttention, RefusesHostTensorsOnAGpu) {
  Mesh mesh(make_mpi_communicator(), {.threads = 1, .device = DeviceChoice::kCuda});
  PagedCase host({.pages = 12, .rows = 1});
  PagedAttention paged(mesh, 12, 16, 1);
  paged.reserve(0, 1);
  OwnedTensor values(Dtype::kFloat32, {1, 6, 1, 64});
  EXPECT_THROW(paged.assign(std::vector{0}, std::vector<std::int64_t>{0}, values.view(),
                            values.view(), host.k_cache.view(), host.v_cache.view()),
               InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
