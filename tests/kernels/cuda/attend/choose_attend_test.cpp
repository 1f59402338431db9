// The choice of a kernel's family and of its rows, which needs no GPU.
#include "kernels/cuda/attend/choose_attend.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>

#include "kernels/attend_checks.hpp"
#include "kvmesh/error.hpp"

namespace kvmesh::cuda {
namespace {

// Blocks of heads are equal and fit a thread block; a group without such blocks stays whole.
TEST(PlannedShape, CutsGroupsThatAreLargerThanAThreadBlock) {
  const auto planned_kv_heads = [](int group, int v_dim) {
    return planned_shape({2 * group, 2, 576, v_dim, 64}).kv_heads;
  };
  EXPECT_EQ(planned_kv_heads(64, 512), 2);
  EXPECT_EQ(planned_kv_heads(128, 512), 4);
  EXPECT_EQ(planned_kv_heads(96, 512), 4);
  EXPECT_EQ(planned_kv_heads(150, 512), 6);
  EXPECT_EQ(planned_kv_heads(67, 512), 2);
  EXPECT_EQ(planned_kv_heads(128, 128), 2);
  EXPECT_EQ(planned_kv_heads(130, 128), 4);
  EXPECT_EQ(planned_kv_heads(131, 128), 2);
}

TEST(PlannedShape, LatentHeadsReachTheirKernels) {
  const auto name_of = [](int heads, int queries, int page_size) {
    const AttentionShape shape{heads, 1, 576, 512, page_size};
    const int rows = row_class_of(std::int64_t{queries} * heads, shape);
    return choose_attend({.shape = shape, .kinds = {.latent = true}, .rows = rows}).name;
  };
  for (const int page_size : {8, 16, 64, 256}) {
    EXPECT_EQ(name_of(8, 1, page_size), "hopper decode");
    EXPECT_EQ(name_of(16, 1, page_size), "hopper decode");
    EXPECT_EQ(name_of(16, 2, page_size), "hopper decode");
    EXPECT_EQ(name_of(16, 3, page_size), "hopper latent");
    EXPECT_EQ(name_of(16, 1000, page_size), "hopper latent");
    EXPECT_EQ(name_of(128, 1, page_size), "hopper latent");
  }
  for (const int page_size : {1, 2, 4}) {
    EXPECT_EQ(name_of(8, 1, page_size), "hopper decode gather");
    EXPECT_EQ(name_of(16, 2, page_size), "hopper decode gather");
    EXPECT_EQ(name_of(16, 3, page_size), "hopper latent gather");
    EXPECT_EQ(name_of(128, 1, page_size), "hopper latent gather");
  }
}

TEST(AttendVariant, WarpsGatherWhatTheCopyEngineCannotBring) {
  const auto choose = [](int k_dim, int page_size, const TensorKinds& kinds) {
    return choose_attend({.shape = {16, 1, k_dim, k_dim - 64, page_size}, .kinds = kinds}).name;
  };
  EXPECT_EQ(choose(576, 64, {.latent = true}), "hopper decode");
  const TensorKinds in_boxes{.pool_contiguous = false, .latent = true};
  EXPECT_EQ(choose(576, 64, in_boxes), "hopper decode");
  EXPECT_EQ(choose(576, 1, in_boxes), "hopper decode gather");
  const TensorKinds in_pieces{.pool_contiguous = false, .pool_boxes = false, .latent = true};
  EXPECT_EQ(choose(576, 64, in_pieces), "hopper decode gather");
  EXPECT_EQ(choose(320, 1, {.latent = true}), "hopper decode gather");
  EXPECT_EQ(choose(256, 1, {.latent = true}), "mma");
  EXPECT_EQ(choose(576, 1, {.pool_vectors = false, .latent = true}), "plain");
  EXPECT_EQ(choose(576, 1, {.pool = Dtype::kFloat8E4M3, .latent = true}), "plain");
  EXPECT_EQ(choose(576, 1, {}), "plain");
  EXPECT_EQ(choose(576, 24, {.latent = true}), "plain");
}

TEST(AttendVariant, ManyRowsGatherSmallPages) {
  const auto choose = [](int dim, int page_size, const TensorKinds& kinds = {}) {
    return choose_attend({.shape = {8, 2, dim, dim, page_size}, .kinds = kinds, .rows = 128}).name;
  };
  for (const int page_size : {1, 4, 8, 24})
    EXPECT_EQ(choose(128, page_size), "hopper prefill gather");
  EXPECT_EQ(choose(128, 16), "hopper prefill");
  EXPECT_EQ(choose(96, 8), "hopper prefill");  // rows of other dims have no units to gather
  EXPECT_EQ(choose(128, 8, {.pool = Dtype::kFloat8E4M3}), "hopper prefill float8");
}

// So pieces of a fixed split end with a tile.
TEST(AttendVariant, TilesDivideTheGrainOfFixedSplits) {
  for (const AttentionShape& shape :
       {AttentionShape{8, 2, 128, 128, 16}, AttentionShape{8, 8, 64, 64, 32},
        AttentionShape{8, 2, 192, 128, 64}, AttentionShape{4, 4, 256, 256, 16},
        AttentionShape{8, 2, 128, 128, 24}, AttentionShape{16, 1, 576, 512, 64},
        AttentionShape{16, 1, 320, 256, 16}, AttentionShape{4, 2, 20, 12, 4}}) {
    for (const Dtype pool : {Dtype::kBFloat16, Dtype::kFloat8E4M3, Dtype::kFloat32}) {
      for (const int rows : kRowClasses) {
        for (const char* architecture : {"sm_80", "sm_90a"}) {
          const AttendVariant variant =
              choose_attend({.shape = shape,
                             .kinds = {.pool = pool, .latent = shape.k_dim > 256},
                             .rows = rows,
                             .architecture = architecture});
          EXPECT_EQ(kSplitGrain % variant.tile_keys, 0) << variant.name << ", " << rows << " rows";
        }
      }
    }
  }
}

TEST(PlannedShape, LatentFloat8HeadsReachTheirKernel) {
  const auto choose = [](int heads, int rows, int page_size, int k_dim) {
    return choose_attend({.shape = {heads, 1, k_dim, 512, page_size},
                          .kinds = {.pool = Dtype::kFloat8E4M3, .latent = true, .row_scales = true},
                          .rows = rows});
  };
  const auto rows_of = [](int heads, int queries) {
    return row_class_of(std::int64_t{queries} * heads, {heads, 1, 576, 512, 64});
  };
  for (const int page_size : {8, 16, 64, 256}) {
    for (const int heads : {8, 16, 40, 128}) {
      const int chunk_rows =
          long_row_class({.shape = {heads, 1, 576, 512, page_size},
                          .kinds = {.pool = Dtype::kFloat8E4M3, .latent = true}});
      EXPECT_EQ(chunk_rows, 64);
      EXPECT_EQ(choose(heads, chunk_rows, page_size, 576).name, "hopper latent float8");
      for (const int queries : {1, 2, 3}) {
        const AttendVariant variant = choose(heads, rows_of(heads, queries), page_size, 576);
        EXPECT_EQ(variant.name, "hopper latent float8") << heads << " x " << queries;
      }
    }
  }
  EXPECT_EQ(choose(16, 16, 64, 576).blocks_per_multiprocessor, 2);
  EXPECT_EQ(choose(16, 32, 64, 576).blocks_per_multiprocessor, 1);
  EXPECT_EQ(choose(16, 16, 4, 576).name, "plain");
  EXPECT_EQ(choose(16, 16, 64, 512).name, "plain");  // weights have no place in the keys
}

/// The kernel of long chunks over float8 pages.
AttendVariant float8_chunks(int group, int dim, bool head_classes, const char* architecture) {
  AttendCase what{.shape = {2 * group, 2, dim, dim, 16},
                  .kinds = {.pool = Dtype::kFloat8E4M3, .row_scales = true},
                  .head_classes = head_classes,
                  .architecture = architecture};
  what.rows = long_row_class(what);
  return choose_attend(what);
}

TEST(LongRowClass, Float8ChunksReachTensorCores) {
  const auto name_of = [](int group, int dim, bool head_classes = false,
                          const char* architecture = "sm_90a") {
    return float8_chunks(group, dim, head_classes, architecture).name;
  };
  for (const int dim : {64, 128, 192, 256}) {
    EXPECT_EQ(name_of(8, dim), "hopper prefill float8");
    EXPECT_EQ(name_of(64, dim), "hopper prefill float8");
    EXPECT_EQ(name_of(8, dim, false, "sm_100"), "plain");
  }
  EXPECT_EQ(name_of(8, 128, true), "hopper prefill float8");
  EXPECT_EQ(name_of(8, 256, true), "hopper decode float8");
  EXPECT_EQ(name_of(64, 256, true), "plain");
  EXPECT_EQ(name_of(8, 96), "plain");
}

/// A scale of a head is one number for a thread block, so pages with such scales need no kernels of
/// their own; pools of an engine neither.
TEST(AttendVariant, ScalesPerHeadAreNoScalesOfRows) {
  const AttentionShape shape{8, 2, 128, 128, 16};
  alignas(16) std::byte memory[32];
  const ConstTensorView q(memory, Dtype::kBFloat16, {1, 8, 128});
  const auto kinds_with = [&](const std::array<std::int64_t, 4>& k_strides,
                              const std::array<std::int64_t, 4>& v_strides) {
    const ConstTensorView rows(memory, Dtype::kFloat8E4M3, {4, 2, 16, 128});
    ConstKvPool pool{rows, {memory + 16, Dtype::kFloat8E4M3, {4, 2, 16, 128}}};
    for (auto* scale : {&pool.k_scale, &pool.v_scale}) {
      scale->per_token = {memory, Dtype::kFloat32, {4, 2, 16, 1}};
      scale->per_token.strides = scale == &pool.k_scale ? k_strides : v_strides;
    }
    return kinds_of(q, pool);
  };
  const std::array<std::int64_t, 4> of_heads{0, 1, 0, 1}, of_rows{32, 16, 1, 1};
  EXPECT_FALSE(kinds_with(of_heads, of_heads).row_scales);
  EXPECT_TRUE(kinds_with(of_rows, of_rows).row_scales);
  EXPECT_TRUE(kinds_with(of_rows, of_heads).row_scales);
  const auto name_of = [&](const TensorKinds& kinds, int rows) {
    return choose_attend({.shape = shape, .kinds = kinds, .rows = rows}).name;
  };
  EXPECT_EQ(name_of(kinds_with(of_heads, of_heads), 8), "hopper decode float8");
  EXPECT_EQ(name_of(kinds_with(of_heads, of_heads), 128), "hopper prefill float8");
  EXPECT_EQ(name_of(kinds_with(of_rows, of_heads), 8), "hopper decode float8");
  const ConstTensorView rows(memory, Dtype::kFloat8E4M3, {4, 2, 16, 128});
  ConstKvPool of_keys{rows, {memory + 16, Dtype::kFloat8E4M3, {4, 2, 16, 128}}};
  of_keys.k_scale.per_token = {memory, Dtype::kFloat32, {4, 2, 16, 1}};
  EXPECT_EQ(name_of(kinds_of(q, of_keys), 8), "plain") << "the values have one number";
}

/// The copy engine takes pages in every order of memory that engines have: a map has one for heads
/// that are whole atoms apart, and one for pages without gaps.
TEST(AttendVariant, PagesOfEnginesNeedNoKernelsOfTheirOwn) {
  constexpr std::int64_t kPages = 4, kHeads = 2, kTokens = 16;
  const auto family_of = [&](Dtype dtype, std::int64_t dim, bool tokens_first, std::int64_t row,
                             std::int64_t halves) {
    alignas(16) std::byte memory[32];
    ConstTensorView half(memory, dtype, {kPages, kHeads, kTokens, dim});
    half.strides = {halves * kHeads * kTokens * row, tokens_first ? row : kTokens * row,
                    tokens_first ? kHeads * row : row, 1};
    ConstKvPool pool{half, half};
    pool.v.data = memory + 16;
    const AttentionShape shape{8, 2, static_cast<int>(dim), static_cast<int>(dim), kTokens};
    const ConstTensorView q(memory, Dtype::kBFloat16, {1, 8, dim});
    return choose_attend({.shape = shape, .kinds = kinds_of(q, pool), .rows = 8}).name;
  };
  const auto half_family = [&](std::int64_t dim, bool tokens_first, std::int64_t row,
                               std::int64_t halves = 1) {
    return family_of(Dtype::kBFloat16, dim, tokens_first, row, halves);
  };
  for (const std::int64_t dim : {64, 96, 128, 192, 224, 256}) {
    for (const bool tokens_first : {false, true}) {
      EXPECT_EQ(half_family(dim, tokens_first, dim), "hopper decode") << dim;
      EXPECT_EQ(half_family(dim, tokens_first, dim, 2), "hopper decode") << dim;
      EXPECT_EQ(half_family(dim, tokens_first, 2 * dim), "hopper decode") << dim;
    }
  }
  EXPECT_EQ(half_family(160, false, 160), "hopper decode");
  EXPECT_EQ(half_family(160, true, 160), "mma");  // atoms begin at 0, 48 and 96
  EXPECT_EQ(half_family(128, true, 136), "mma");  // a head is not whole rows from the next
  EXPECT_EQ(half_family(192, true, 320), "hopper decode");  // beside values of 128
  EXPECT_EQ(half_family(128, true, 132), "plain");          // rows begin at multiples of 8 bytes
  for (const std::int64_t dim : {64, 128, 192, 256}) {
    EXPECT_EQ(family_of(Dtype::kFloat8E4M3, dim, true, dim, 2), "hopper decode float8") << dim;
  }
}

TEST(AttendVariant, PagesHaveTokens) {
  const AttentionShape shape{.q_heads = 8, .kv_heads = 2, .k_dim = 128, .v_dim = 128};
  EXPECT_THROW(choose_attend({.shape = shape}), InvalidArgument);
}

TEST(AttendVariant, ExactSumsNeedTensorCores) {
  const auto choose = [](Dtype pool, int dim, bool vectors) {
    return choose_attend({.shape = {8, 2, dim, dim, 16},
                          .kinds = {.pool = pool, .pool_vectors = vectors},
                          .exact = true})
        .name;
  };
  EXPECT_EQ(choose(Dtype::kFloat16, 128, true), "exact");
  EXPECT_EQ(choose(Dtype::kBFloat16, 512, true), "exact");
  EXPECT_THROW(choose(Dtype::kFloat32, 128, true), Unsupported);
  EXPECT_THROW(choose(Dtype::kFloat8E4M3, 128, true), Unsupported);
  EXPECT_THROW(choose(Dtype::kFloat16, 20, true), Unsupported);
  EXPECT_THROW(choose(Dtype::kFloat16, 584, true), Unsupported);
  EXPECT_THROW(choose(Dtype::kFloat16, 128, false), Unsupported);
}

}  // namespace
}  // namespace kvmesh::cuda
