// An engine in small: one layer, one sequence, its pages on two ranks.
//
// All keys are zero, so every visible key has the same weight, and token i holds the value i:
// causal attention gives row i the mean of 0..i, which is i / 2, and the log-sum-exp log(i + 1).
#include <kvmesh/kvmesh.hpp>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <vector>

namespace {

constexpr int kTokens = 10;
constexpr int kHeads = 2;
constexpr int kDim = 4;

bool is_close(float got, double expected) { return std::abs(got - expected) < 1e-5; }  // NaN is not

int wrong_numbers(const std::vector<float>& o, const std::vector<float>& lse) {
  int wrong = 0;
  for (int token = 0; token < kTokens; ++token) {
    for (int row = token * kHeads; row < (token + 1) * kHeads; ++row) {
      wrong += !is_close(lse[row], std::log(token + 1.0));
      for (int d = 0; d < kDim; ++d) wrong += !is_close(o[row * kDim + d], token / 2.0);
    }
  }
  return wrong;
}

int attend(kvmesh::Mesh& mesh) {
  kvmesh::KvCache cache(mesh, {.q_heads = kHeads,
                               .kv_heads = 1,
                               .k_dim = kDim,
                               .page_size = 2,
                               .pages_per_rank = 8,
                               .dtype = kvmesh::Dtype::kFloat32,
                               .placement = kvmesh::Placement::kStriped});
  const kvmesh::BatchEntry prompt{.sequence = cache.create(), .append_tokens = kTokens};
  // Changes nothing, by every operator: with the shared library they must be there.
  const kvmesh::ScoreMod same([](auto score, auto, auto, auto q, auto kv) {
    const auto none = !(q % 2 <= 2 && kv / 2 < 0) || q > kv;
    return where((none & (q >= 0)) | (q == kv), -(-score * 1.0F) + (kv - kv), score);
  });
  kvmesh::StepPlan step = cache.plan({&prompt, 1}, {.score = same});

  const std::vector<float> q(kTokens * kHeads * kDim, 1.0F);
  const std::vector<float> k(kTokens * kDim, 0.0F);
  std::vector<float> v(kTokens * kDim);
  for (int i = 0; i < kTokens * kDim; ++i) v[i] = static_cast<float>(i / kDim);
  std::vector<float> o(q.size(), NAN);
  std::vector<float> lse(kTokens * kHeads, NAN);
  step.run(0,
           {.q = kvmesh::tensor(q.data(), {kTokens, kHeads, kDim}),
            .k = kvmesh::tensor(k.data(), {kTokens, 1, kDim}),
            .v = kvmesh::tensor(v.data(), {kTokens, 1, kDim})},
           {.o = kvmesh::tensor(o.data(), {kTokens, kHeads, kDim}),
            .lse = kvmesh::tensor(lse.data(), {kTokens, kHeads})});
  return wrong_numbers(o, lse);
}

}  // namespace

int main() {
  std::atomic<int> wrong = 0;
  kvmesh::run_on_threads(2, [&](kvmesh::Mesh& mesh) {
    const int wrong_here = attend(mesh);
    std::printf("rank %d of %d: %d wrong numbers\n", mesh.rank().value, mesh.size(), wrong_here);
    wrong += wrong_here;
  });
  return wrong == 0 ? 0 : 1;
}
