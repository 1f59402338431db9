// Every invalid argument is an error that changes nothing.
#include <gmock/gmock.h>

#include "tests/support/attention_case.hpp"

namespace kvmesh::test {
namespace {

using testing::HasSubstr;

CaseSpec plain() {
  CaseSpec spec;
  spec.sequences = {{.q_len = 2, .kv_len = 40}, {.q_len = 1, .kv_len = 20}};
  return spec;
}

template <class Call>
void expect_invalid(const Call& call, const std::string& says) {
  try {
    call();
    ADD_FAILURE() << "no error: " << says;
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr(says));
  }
}

void expect_bad_shape(const AttentionShape& shape, const std::string& says) {
  AttentionCase c(plain());
  expect_invalid([&] { AttentionPlan(shape, c.batch(), {}); }, says);
}

TEST(AttendErrors, Shape) {
  expect_bad_shape({5, 2, 32, 32, 16}, "5 query heads do not divide over 2 kv heads");
  expect_bad_shape({0, 2, 32, 32, 16}, "0 query heads");
  expect_bad_shape({4, 0, 32, 32, 16}, "0 kv heads");
  expect_bad_shape({4, -2, 32, 32, 16}, "-2 kv heads");
  expect_bad_shape({4, 2, 577, 32, 16}, "577 (k)");
  expect_bad_shape({4, 2, 0, 32, 16}, "0 (k)");
  expect_bad_shape({4, 2, 32, 577, 16}, "577 (v)");
  expect_bad_shape({4, 2, 32, -1, 16}, "-1 (v)");
  expect_bad_shape({4, 2, 32, 32, 0}, "page_size is 0");
}

void expect_bad_batch(const std::function<void(AttentionBatch&)>& spoil, const std::string& says) {
  AttentionCase c(plain());
  AttentionBatch batch = c.batch();
  spoil(batch);
  expect_invalid([&] { AttentionPlan(c.spec().shape, batch, {}); }, says);
}

TEST(AttendErrors, Queries) {
  expect_bad_batch([](auto& b) { b.q_indptr.clear(); }, "q_indptr is empty");
  expect_bad_batch([](auto& b) { b.q_indptr.pop_back(); }, "q_indptr must rise");
  expect_bad_batch([](auto& b) { b.q_indptr = {1, 2, 3}; }, "q_indptr must rise");
  expect_bad_batch([](auto& b) { b.q_indptr = {0, 4, 3}; }, "q_indptr must rise");
  expect_bad_batch([](auto& b) { b.q_positions = {0, 1}; }, "2 query positions for 3 queries");
}

TEST(AttendErrors, Pages) {
  expect_bad_batch([](auto& b) { b.page_indptr = {0, 3}; }, "page_indptr must rise");
  expect_bad_batch([](auto& b) { b.page_indptr.back() += 1; }, "page_indptr must rise");
  expect_bad_batch([](auto& b) { b.page_indptr.clear(); }, "page_indptr must rise");
  expect_bad_batch([](auto& b) { b.page_indptr = {0, 6, 5}; }, "page_indptr must rise");
  expect_bad_batch([](auto& b) { b.pages[1].page = -1; }, "must be valid");
  expect_bad_batch([](auto& b) { b.pages[0].logical = -1; }, "must be valid");
  expect_bad_batch([](auto& b) { std::swap(b.pages[0], b.pages[1]); }, "rising logical order");
  expect_bad_batch([](auto& b) { b.pages[1].logical = 0; }, "rising logical order");
  expect_bad_batch([](auto& b) { b.kv_lens[1] = -1; }, "length -1");
  expect_bad_batch([](auto& b) { b.kv_lens[0] = std::int64_t{1} << 31; }, "not in [0, 2^31)");
  expect_bad_batch([](auto& b) { b.kv_lens[0] = 32; }, "past its length 32");
  expect_bad_batch([](auto& b) { b.kv_lens.push_back(1); }, "q_indptr must rise");
}

// A visit has 30 bits for the logical page.
TEST(AttendErrors, MorePagesThanAVisitCanNumber) {
  AttentionCase c(plain());
  AttentionBatch batch = c.batch();
  AttentionShape shape = c.spec().shape;
  shape.page_size = 1;
  batch.kv_lens[1] = (std::int64_t{1} << 30) + 1;
  batch.pages.back().logical = (1 << 30) - 1;
  AttentionPlan(shape, batch, {});
  batch.pages.back().logical = 1 << 30;
  expect_invalid([&] { AttentionPlan(shape, batch, {}); }, "logical page 1073741824");
}

// Positions are int32 inside: values that do not fit must not wrap around into valid ones.
TEST(AttendErrors, PositionsPastInt32) {
  expect_bad_batch([](auto& b) { b.q_positions = {0, std::int64_t{1} << 32, 0}; }, "position");
  expect_bad_batch([](auto& b) { b.q_positions = {0, 0, -(std::int64_t{1} << 33)}; }, "position");
  // The end of a range of positions is an int32, too.
  expect_bad_batch(
      [](auto& b) {
        b.q_positions = {0, (std::int64_t{1} << 31) - 1, 0};
      },
      "position");
}

// Calls attend_partial with a spoilt argument, and expects unchanged outputs.
struct Call {
  ConstTensorView q;
  ConstKvPool pool;
  Partial out;
  ConstTensorView sinks;
};

void expect_bad_call(const std::function<void(Call&)>& spoil, const std::string& says) {
  AttentionCase c(plain());
  AttentionPlan plan(c.spec().shape, c.batch(), {});
  CaseResult result = c.outputs();
  const std::vector<float> sinks(4);
  Call call{c.q(), c.pool(), c.partial(result), {sinks.data(), Dtype::kFloat32, {4}}};
  spoil(call);
  ThreadPool threads(1);
  expect_invalid([&] { plan.attend_partial(call.q, call.pool, call.out, threads, call.sinks); },
                 says);
  EXPECT_EQ(result.o.written(), 0);
  EXPECT_EQ(result.lse.written(), 0);
}

TEST(AttendErrors, QueryTensor) {
  expect_bad_call([](Call& c) { c.q.dims = 2; }, "q must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.q.shape[0] = 4; }, "q must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.q.shape[1] = 2; }, "q must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.q.shape[2] = 16; }, "q must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.q.strides[2] = 2; }, "contiguous");
}

TEST(AttendErrors, Pool) {
  expect_bad_call([](Call& c) { c.pool.k.dims = 3; }, "[pages, kv_heads, page_size, dim]");
  expect_bad_call([](Call& c) { c.pool.v.dims = 3; }, "[pages, kv_heads, page_size, dim]");
  expect_bad_call([](Call& c) { c.pool.v.dtype = Dtype::kFloat16; }, "of one dtype");
  expect_bad_call([](Call& c) { c.pool.v.shape[0] = 1; }, "k pool");
  expect_bad_call([](Call& c) { c.pool.v.shape[1] = 1; }, "k pool");
  expect_bad_call([](Call& c) { c.pool.v.shape[2] = 8; }, "k pool");
  expect_bad_call([](Call& c) { c.pool.k.strides[3] = 2; }, "contiguous");
  expect_bad_call([](Call& c) { c.pool.v.strides[3] = 2; }, "contiguous");
  expect_bad_call([](Call& c) { c.pool.k.shape[1] = c.pool.v.shape[1] = 1; }, "2 kv heads");
  expect_bad_call([](Call& c) { c.pool.k.shape[2] = c.pool.v.shape[2] = 8; }, "pages of 16");
  expect_bad_call([](Call& c) { c.pool.k.shape[3] = 16; }, "dims 32 and 32");
  expect_bad_call([](Call& c) { c.pool.v.shape[3] = 16; }, "dims 32 and 32");
  expect_bad_call([](Call& c) { c.pool.k.shape[0] = c.pool.v.shape[0] = 1; }, "of a pool of 1");
}

TEST(AttendErrors, Outputs) {
  expect_bad_call([](Call& c) { c.out.o.dims = 2; }, "o must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.out.o.shape[0] = 2; }, "o must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.out.o.shape[2] = 31; }, "o must be [3, 4, 32]");
  expect_bad_call([](Call& c) { c.out.o.strides[2] = 4; }, "contiguous");
  expect_bad_call([](Call& c) { c.out.o.dtype = Dtype::kBFloat16; }, "partials are float32");
  expect_bad_call([](Call& c) { c.out.lse.dtype = Dtype::kFloat16; }, "partials are float32");
  expect_bad_call([](Call& c) { c.out.lse.dims = 3; }, "lse must be [3, 4]");
  expect_bad_call([](Call& c) { c.out.lse.shape[0] = 2; }, "lse must be [3, 4]");
  expect_bad_call([](Call& c) { c.out.lse.shape[1] = 3; }, "lse must be [3, 4]");
}

TEST(AttendErrors, Sinks) {
  expect_bad_call([](Call& c) { c.sinks.shape[0] = 2; }, "sinks must be [4]");
  expect_bad_call([](Call& c) { c.sinks.dims = 2; }, "sinks must be [4]");
  expect_bad_call([](Call& c) { c.sinks.strides[0] = 2; }, "contiguous");
  expect_bad_call([](Call& c) { c.sinks.dtype = Dtype::kBFloat16; }, "in float32");
  expect_bad_batch([](auto& b) { b.counts_sinks = {true}; }, "counts_sinks has 1");
}

}  // namespace
}  // namespace kvmesh::test
