// An engine that has its own pages and block tables: mpirun -np 2 ./external_program
#include <kvmesh/kvmesh.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace {

constexpr int kHeads = 8, kKvHeads = 2, kDim = 64, kPageSize = 16, kPages = 64, kLayers = 2;

/// One layer of the engine's cache on this rank: [pages, 2, page_size, kv_heads, dim], a page's
/// keys before its values.
struct Layer {
  std::vector<float> memory = std::vector<float>(kPages * 2 * kPageSize * kKvHeads * kDim);

  kvmesh::KvPool pool() {
    constexpr std::int64_t kHalf = kPageSize * kKvHeads * kDim;
    const auto half = [&](std::int64_t first) {
      return kvmesh::TensorView(memory.data() + first, kvmesh::Dtype::kFloat32,
                                {kPages, kPageSize, kKvHeads, kDim},
                                {2 * kHalf, kKvHeads * kDim, kDim, 1});
    };
    return kvmesh::nhd_pool(half(0), half(kHalf));
  }
};

}  // namespace

int main(int argc, char** argv) {
  kvmesh::MpiSession mpi(argc, argv);
  kvmesh::Mesh mesh = kvmesh::Mesh::from_launcher();
  std::vector<Layer> layers(kLayers);
  kvmesh::ExternalPool pool(mesh, layers[0].pool(), {.q_heads = kHeads});

  // Two prompts, of 100 and 37 tokens. With several ranks a page of the table stands for one page
  // on each of them, so that fewer of a row are used.
  constexpr std::int32_t kRow = 8;
  const std::vector<std::int32_t> q_indptr{0, 100, 137}, kv_lens{100, 37}, appended{100, 37};
  const std::vector<std::int32_t> block_table{4,  9, 2,  7,  1,  0,  3,  8,
                                              12, 5, 30, 31, 32, 33, 34, 35};
  kvmesh::ExternalPlan prompts = pool.plan({.q_indptr = q_indptr,
                                            .kv_lens = kv_lens,
                                            .indices = block_table,
                                            .row_length = kRow,
                                            .appended = appended});

  std::vector<float> q(137 * kHeads * kDim, 0.1f), o(q.size()), lse(137 * kHeads);
  std::vector<float> k(137 * kKvHeads * kDim, 0.2f), v(k.size(), 0.3f);
  for (Layer& layer : layers) {  // writes k and v to the pages, attends, combines
    prompts.run(layer.pool(),
                {.q = kvmesh::tensor(q.data(), {137, kHeads, kDim}),
                 .k = kvmesh::tensor(k.data(), {137, kKvHeads, kDim}),
                 .v = kvmesh::tensor(v.data(), {137, kKvHeads, kDim})},
                {.o = kvmesh::tensor(o.data(), {137, kHeads, kDim}),
                 .lse = kvmesh::tensor(lse.data(), {137, kHeads})});
  }
  std::printf("rank %d of %d: o[0] = %.3f\n", mesh.rank().value, mesh.size(), o[0]);
  return std::abs(o[0] - 0.3f) < 1e-5f ? 0 : 1;
}
