// Every invalid argument of PagedAttention is an error that changes nothing.
#include <cstring>
#include <functional>
#include <source_location>

#include "tests/runtime/torch_like/paged_case.hpp"

namespace kvmesh::test {
namespace {

TEST(PagedAttention, ErrorsOfTheConstructorAndOfRows) {
  EXPECT_THROW(PagedAttention(0, 16, 1), InvalidArgument);
  EXPECT_THROW(PagedAttention(4, 0, 1), InvalidArgument);
  EXPECT_THROW(PagedAttention(4, 16, 0), InvalidArgument);
  PagedAttention paged(4, 16, 2);
  EXPECT_THROW(paged.reserve(2, 1), InvalidArgument);
  EXPECT_THROW(paged.reserve(-1, 1), InvalidArgument);
  EXPECT_THROW(paged.reserve(0, -1), InvalidArgument);
  EXPECT_THROW(paged.erase(2), InvalidArgument);
  EXPECT_THROW(paged.capacity(-1), InvalidArgument);
}

struct AssignCall {
  std::vector<int> rows{0, 1};
  std::vector<std::int64_t> positions{0, 1, 2, 0, 1, 2};
  ConstTensorView k, v;
  TensorView k_cache, v_cache;
};

void expect_assign_fails(const std::function<void(AssignCall&)>& spoil) {
  PagedCase c(
      {.pages = 8, .page_size = 4, .rows = 3, .q_heads = 2, .kv_heads = 2, .k_dim = 8, .v_dim = 5});
  c.paged.reserve(0, 4);
  c.paged.reserve(1, 4);
  OwnedTensor k(Dtype::kFloat32, {2, 2, 3, 8}), v(Dtype::kFloat32, {2, 2, 3, 5});
  std::memset(k.view().data, 0, 2 * 2 * 3 * 8 * 4);
  std::memset(v.view().data, 0, 2 * 2 * 3 * 5 * 4);
  AssignCall call;
  call.k = k.view();
  call.v = v.view();
  call.k_cache = c.k_cache.view();
  call.v_cache = c.v_cache.view();
  spoil(call);
  EXPECT_THROW(
      c.paged.assign(call.rows, call.positions, call.k, call.v, call.k_cache, call.v_cache),
      InvalidArgument);
  EXPECT_EQ(c.k_cache.written(), 0);
  EXPECT_EQ(c.v_cache.written(), 0);
}

TEST(PagedAttention, AssignErrorsWriteNothing) {
  // Batch size, heads, length and hidden dims, each of K and of V.
  expect_assign_fails([](AssignCall& c) { c.rows = {0}; });
  expect_assign_fails([](AssignCall& c) { c.v.shape[0] = 1; });
  expect_assign_fails([](AssignCall& c) { c.k.shape[1] = 1; });
  expect_assign_fails([](AssignCall& c) { c.v.shape[1] = 1; });
  expect_assign_fails([](AssignCall& c) { c.positions.pop_back(); });
  expect_assign_fails([](AssignCall& c) { c.v.shape[2] = 2; });
  expect_assign_fails([](AssignCall& c) { c.k.shape[3] = 7; });
  expect_assign_fails([](AssignCall& c) { c.v.shape[3] = 4; });
  expect_assign_fails([](AssignCall& c) { c.k.dims = 3; });
  expect_assign_fails([](AssignCall& c) { c.v_cache.dims = 3; });
  expect_assign_fails([](AssignCall& c) { c.k.strides[3] = 2; });
  // Caches that are not the pages' size.
  expect_assign_fails([](AssignCall& c) { c.k_cache.shape[2] = 31; });
  expect_assign_fails([](AssignCall& c) { c.v_cache.shape[0] = 2; });
  expect_assign_fails([](AssignCall& c) { c.v_cache.dtype = Dtype::kFloat16; });
  // A row that does not exist, one without pages, positions before and past its pages.
  expect_assign_fails([](AssignCall& c) { c.rows = {0, 3}; });
  expect_assign_fails([](AssignCall& c) { c.rows = {0, 2}; });
  expect_assign_fails([](AssignCall& c) { c.positions.back() = 4; });
  expect_assign_fails([](AssignCall& c) { c.positions.back() = -1; });
}

struct ForwardCall {
  std::vector<std::int64_t> kv_lens{20, 30};
  ConstTensorView query, k_cache, v_cache;
  TensorView out;
  PagedAttention::ForwardOptions options;
};

void expect_forward_fails(const std::function<void(ForwardCall&)>& spoil,
                          std::source_location where = std::source_location::current()) {
  SCOPED_TRACE(where.line());
  PagedCase c({.pages = 8, .rows = 3, .q_heads = 4, .kv_heads = 2, .k_dim = 8, .v_dim = 6});
  c.assign(0, 20);
  c.assign(1, 30);
  OwnedTensor query = c.query(2, 3), out(Dtype::kFloat32, {2, 4, 3, 6}),
              lse(Dtype::kFloat32, {2, 4, 3});
  ForwardCall call;
  call.query = query.view();
  call.k_cache = c.k_cache.view();
  call.v_cache = c.v_cache.view();
  call.out = out.view();
  call.options.lse = lse.view();
  call.options.enable_gqa = true;
  spoil(call);
  EXPECT_THROW(
      c.paged.forward(call.query, call.k_cache, call.v_cache, call.kv_lens, call.out, call.options),
      InvalidArgument);
  EXPECT_EQ(out.written(), 0);
  EXPECT_EQ(lse.written(), 0);
}

TEST(PagedAttention, ForwardErrorsWriteNothing) {
  expect_forward_fails([](ForwardCall& c) { c.options.enable_gqa = false; });
  expect_forward_fails([](ForwardCall& c) { c.query.dims = 3; });
  expect_forward_fails([](ForwardCall& c) { c.query.shape[3] = 7; });
  expect_forward_fails([](ForwardCall& c) { c.query.strides[3] = 2; });
  expect_forward_fails(
      [](ForwardCall& c) { c.query.shape[1] = c.out.shape[1] = c.options.lse.shape[1] = 3; });
  expect_forward_fails([](ForwardCall& c) { c.k_cache.shape[2] = 100; });
  expect_forward_fails([](ForwardCall& c) { c.v_cache.dims = 3; });
  expect_forward_fails([](ForwardCall& c) { c.v_cache.shape[1] = 1; });
  expect_forward_fails([](ForwardCall& c) { c.kv_lens = {20}; });
  expect_forward_fails([](ForwardCall& c) { c.kv_lens = {33, 30}; });  // past the pages
  expect_forward_fails([](ForwardCall& c) { c.kv_lens = {-1, 30}; });
  expect_forward_fails([](ForwardCall& c) { c.out.shape[0] = 1; });
  expect_forward_fails([](ForwardCall& c) { c.out.shape[2] = 2; });
  expect_forward_fails([](ForwardCall& c) { c.out.shape[3] = 5; });
  expect_forward_fails([](ForwardCall& c) { c.out.strides[3] = 2; });
  expect_forward_fails([](ForwardCall& c) { c.options.lse.shape[2] = 2; });
  expect_forward_fails([](ForwardCall& c) { c.options.lse.dtype = Dtype::kBFloat16; });
  expect_forward_fails([](ForwardCall& c) { c.options.lse.dims = 2; });
  expect_forward_fails([](ForwardCall& c) { c.options.batch_indices = {0}; });
  expect_forward_fails([](ForwardCall& c) { c.options.batch_indices = {0, 3}; });
  expect_forward_fails([](ForwardCall& c) { c.options.batch_indices = {0, 2}; });  // no pages
}

void expect_mask_fails(const BlockMaskShape& shape) {
  const BlockMask mask = BlockMask::create(mods::causal(), shape);
  expect_forward_fails([&](ForwardCall& c) { c.options.block_mask = &mask; });
}

TEST(PagedAttention, ForwardErrorsOfBlockMasks) {
  expect_mask_fails({.q_len = 3, .kv_len = 30, .q_block = 4, .kv_block = 8});  // not the page size
  expect_mask_fails({.q_len = 4, .kv_len = 30, .q_block = 4, .kv_block = 16});
  expect_mask_fails({.q_len = 3, .kv_len = 29, .q_block = 4, .kv_block = 16});
  expect_mask_fails({.heads = 2, .q_len = 3, .kv_len = 30, .q_block = 4, .kv_block = 16});
  expect_mask_fails({.batch = 3, .q_len = 3, .kv_len = 30, .q_block = 4, .kv_block = 16});
}

TEST(PagedAttention, ConvertsNoMaskForLengthsBelowZero) {
  PagedAttention paged(8, 16, 2);
  paged.reserve(0, 16);
  paged.reserve(1, 16);
  const BlockMask mask = BlockMask::create(
      mods::causal(), {.batch = 2, .q_len = 16, .kv_len = 32, .q_block = 4, .kv_block = 16});
  const std::vector<std::int64_t> lengths{-100, 16};
  EXPECT_THROW(paged.convert_logical_block_mask(mask, {}, lengths), InvalidArgument);
}

}  // namespace
}  // namespace kvmesh::test
