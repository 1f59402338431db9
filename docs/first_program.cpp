// Attention over a cache whose pages are on all ranks: mpirun -np 4 ./first_program
#include <kvmesh/kvmesh.hpp>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  constexpr int kLayers = 2, kHeads = 8, kKvHeads = 2, kDim = 64, kTokens = 1000;
  kvmesh::MpiSession mpi(argc, argv);
  kvmesh::Mesh mesh = kvmesh::Mesh::from_launcher();
  kvmesh::KvCache cache(mesh, {.layers = kLayers,
                               .q_heads = kHeads,
                               .kv_heads = kKvHeads,
                               .k_dim = kDim,
                               .pages_per_rank = 64,
                               .placement = kvmesh::Placement::kStriped});

  std::vector<float> q(kTokens * kHeads * kDim, 0.1f), o(q.size());
  std::vector<float> k(kTokens * kKvHeads * kDim, 0.2f), v(k.size(), 0.3f);

  const kvmesh::SequenceId sequence = cache.create();
  kvmesh::StepPlan step = cache.plan({{sequence, kTokens}});  // once per step: a prompt of 1000
  for (int layer = 0; layer < kLayers; ++layer) {             // append, attend, combine
    step.run(layer,
             {.q = kvmesh::tensor(q.data(), {kTokens, kHeads, kDim}),
              .k = kvmesh::tensor(k.data(), {kTokens, kKvHeads, kDim}),
              .v = kvmesh::tensor(v.data(), {kTokens, kKvHeads, kDim})},
             {.o = kvmesh::tensor(o.data(), {kTokens, kHeads, kDim})});
  }
  const auto left = static_cast<int>(cache.allocator().free_pages(mesh.page_rank()));
  std::printf("rank %d of %d: o[0] = %.3f, %d of 64 pages free\n", mesh.rank().value, mesh.size(),
              o[0], left);
}
