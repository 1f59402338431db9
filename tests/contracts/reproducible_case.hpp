// The guarantees of reproducible caches beside the contracts, for the tests of every device.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {

/// A prompt's tokens, and the shape of the model that computes it.
struct ReproduciblePrompt {
  static constexpr std::int64_t kTokens = 150;
  static constexpr int kQHeads = 4, kKvHeads = 2, kDim = 24;
};

inline CacheOptions reproducible_model(int page_size, Placement placement) {
  using P = ReproduciblePrompt;
  return {.q_heads = P::kQHeads,
          .kv_heads = P::kKvHeads,
          .k_dim = P::kDim,
          .page_size = page_size,
          .pages_per_rank = 64,
          .dtype = Dtype::kFloat16,
          .placement = placement,
          .home_threshold_tokens = 32,
          .reproducible = true};
}

/// The prompt's rows of some heads, with elements from -3 to 3.
inline verify::HostTensor random_rows(verify::Random& random, Dtype dtype, int heads,
                                      Device device) {
  using P = ReproduciblePrompt;
  verify::HostTensor rows(dtype, P::kTokens, heads, P::kDim, device);
  for (std::int64_t t = 0; t < P::kTokens; ++t) {
    for (int head = 0; head < heads; ++head) {
      for (int d = 0; d < P::kDim; ++d) rows.set(t, head, d, 3.0f * random.real());
    }
  }
  return rows;
}

inline TensorView some_rows(TensorView rows, std::int64_t begin, std::int64_t count) {
  rows.data = static_cast<std::byte*>(rows.data) +
              static_cast<std::size_t>(begin * rows.stride(0)) * size_bytes(rows.dtype);
  rows.shape[0] = count;
  return rows;
}

/// Returns every output, and its LSE, of the prompt that is fed `chunk` tokens at a time.
inline std::vector<float> outputs_of(Mesh& mesh, const CacheOptions& options, std::int64_t chunk) {
  using P = ReproduciblePrompt;
  verify::Random random(21);
  const Device device = mesh.device();
  verify::HostTensor q = random_rows(random, Dtype::kFloat32, P::kQHeads, device);
  verify::HostTensor k = random_rows(random, Dtype::kFloat16, P::kKvHeads, device);
  verify::HostTensor v = random_rows(random, Dtype::kFloat16, P::kKvHeads, device);
  verify::HostTensor o(Dtype::kFloat32, P::kTokens, P::kQHeads, P::kDim, device);
  verify::HostTensor lse(Dtype::kFloat32, P::kTokens, P::kQHeads, 1, device);
  const TensorView all[] = {q.on_device(), k.on_device(), v.on_device(), o.on_device(),
                            lse.matrix_on_device()};
  KvCache cache(mesh, options);
  const SequenceId sequence = cache.create();
  for (std::int64_t begin = 0; begin < P::kTokens; begin += chunk) {
    const std::int64_t count = std::min(chunk, P::kTokens - begin);
    const auto rows = [&](int i) { return some_rows(all[i], begin, count); };
    cache.plan({{sequence, count}}, {.mask = mods::causal()})
        .run(0, {rows(0), rows(1), rows(2)}, {.o = rows(3), .lse = rows(4)});
  }
  mesh.wait({}, "test");
  o.fetch();
  lse.fetch();
  std::vector<float> numbers;
  for (std::int64_t t = 0; t < P::kTokens; ++t) {
    for (int head = 0; head < P::kQHeads; ++head) {
      numbers.push_back(lse.get(t, head, 0));
      for (int d = 0; d < P::kDim; ++d) numbers.push_back(o.get(t, head, d));
    }
  }
  return numbers;
}

/// Expects the bits of `want`, whatever the placement, the page size and the parts of the prompt.
inline void expect_same_bits(Mesh& mesh, const std::vector<float>& want) {
  for (const Placement placement : {Placement::kBalanced, Placement::kStriped}) {
    for (const std::int64_t chunk : {1, 37, 150}) {
      EXPECT_EQ(outputs_of(mesh, reproducible_model(16, placement), chunk), want)
          << mesh.size() << " ranks, " << name(placement) << ", " << chunk << " tokens at a time";
    }
  }
  for (const int page_size : {32, 48}) {
    EXPECT_EQ(outputs_of(mesh, reproducible_model(page_size, Placement::kStriped), 64), want)
        << mesh.size() << " ranks, pages of " << page_size;
  }
}

/// Returns the largest errors of a long prompt: of an ordinary cache, and of a reproducible one.
inline std::array<double, 2> largest_errors(const MeshOptions& how, CacheOptions options) {
  std::array<double, 2> errors{};
  options.pages_per_rank = 400;
  for (const bool reproducible : {false, true}) {
    Mesh mesh(make_single_communicator(), how);
    options.reproducible = reproducible;
    CheckedCache cache(mesh, options, 5);
    prompt(cache, 4000, 40);
    EXPECT_TRUE(cache.findings().good());
    errors[reproducible ? 1 : 0] = cache.findings().max_error();
  }
  return errors;
}

inline void expect_no_partials(const MeshOptions& how) {
  using P = ReproduciblePrompt;
  Mesh mesh(make_single_communicator(), how);
  KvCache cache(mesh, reproducible_model(16, Placement::kBalanced));
  StepPlan plan = cache.plan({{cache.create(), 1}});
  verify::HostTensor o(Dtype::kFloat32, 1, P::kQHeads, P::kDim, mesh.device());
  verify::HostTensor lse(Dtype::kFloat32, 1, P::kQHeads, 1, mesh.device());
  const Partial partial{o.on_device(), lse.matrix_on_device()};
  EXPECT_THROW(plan.attend_partial(0, partial.o, partial), Unsupported);
  EXPECT_THROW(plan.combine(partial, {.o = partial.o}), Unsupported);
}

}  // namespace kvmesh::test
