// Writes at any position of a sequence, as PyTorch's PagedAttention.assign does.
#include <numeric>

#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

constexpr int kHeads = 2, kKDim = 8, kVDim = 6;

/// New keys and values: element i is first + i everywhere.
struct WrittenRows {
  WrittenRows(std::int64_t count, float first)
      : k(static_cast<std::size_t>(count * kHeads * kKDim)),
        v(static_cast<std::size_t>(count * kHeads * kVDim)),
        k_view(tensor(k.data(), {count, kHeads, kKDim})),
        v_view(tensor(v.data(), {count, kHeads, kVDim})) {
    for (std::size_t i = 0; i < k.size(); ++i)
      k[i] = first + static_cast<float>(i / (kHeads * kKDim));
    for (std::size_t i = 0; i < v.size(); ++i)
      v[i] = first + static_cast<float>(i / (kHeads * kVDim));
  }
  std::vector<float> k, v;
  TensorView k_view, v_view;
};

/// Expects `values[position]` at the positions of the sequence that this rank holds.
void expect_values(KvCache& cache, SequenceId sequence, int layer,
                   const std::vector<float>& values) {
  const KvPool pool = cache.pool(layer);
  const std::int64_t page_size = cache.options().page_size;
  for (std::size_t position = 0; position < values.size(); ++position) {
    const auto at = static_cast<std::int64_t>(position);
    const PageId page = cache.allocator().pages(sequence)[static_cast<std::size_t>(at / page_size)];
    if (page.rank() != cache.mesh().page_rank()) continue;
    for (const TensorView& half : {pool.k, pool.v}) {
      for (std::int64_t head = 0; head < kHeads; ++head) {
        const auto* row = static_cast<const float*>(half.data) + page.index() * half.stride(0) +
                          head * half.stride(1) + at % page_size * half.stride(2);
        for (std::int64_t d = 0; d < half.size(3); ++d)
          ASSERT_EQ(row[d], values[position]) << "position " << position << " layer " << layer;
      }
    }
  }
}

TEST(Write, ReachesAnyPositionAndLeavesForksAlone) {
  for (int ranks = 1; ranks <= 3; ++ranks) {
    run_on_threads(ranks,
                   [](Mesh& mesh) {
                     CacheOptions options = small_cache_options();
                     options.home_threshold_tokens = 0;  // pages on all ranks
                     KvCache cache(mesh, options);
                     const SequenceId parent = cache.create();
                     fill(cache, parent, 10);
                     const SequenceId child = cache.fork(parent);
                     cache.make_writable(child, 3, 9);
                     const WrittenRows rows(4, 20);
                     const std::vector<std::int64_t> positions{8, 3, 6, 5};
                     cache.write(1, child, positions, rows.k_view, rows.v_view);
                     const std::vector<float> ones(10, 1.0f);
                     expect_values(cache, parent, 0, ones);
                     expect_values(cache, parent, 1, ones);
                     expect_values(cache, child, 0, ones);
                     expect_values(cache, child, 1, {1, 1, 1, 21, 1, 23, 22, 1, 20, 1});
                     EXPECT_EQ(cache.allocator().length(child), 10);
                     cache.check_replicas();
                     cache.allocator().verify_integrity();
                   },
                   {.threads = 1});
  }
}

TEST(Write, GoesPastTheLengthUpToTheCapacity) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, small_cache_options());
  const SequenceId sequence = cache.create();
  cache.reserve(sequence, 5);
  const WrittenRows rows(8, 7);
  const std::vector<std::int64_t> positions{7, 0, 4, 1, 2, 3, 5, 6};
  cache.write(0, sequence, positions, rows.k_view, rows.v_view);
  EXPECT_EQ(cache.allocator().length(sequence), 0);
  const std::vector<BatchEntry> batch{{sequence, 8, 0}};
  const StepPlan plan = cache.plan(batch);
  expect_values(cache, sequence, 0, {8, 10, 11, 12, 9, 13, 14, 7});
}

TEST(Write, RejectsInvalidWritesAndChangesNothing) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, small_cache_options());
  const SequenceId parent = cache.create();
  fill(cache, parent, 6);
  const SequenceId child = cache.fork(parent);
  cache.make_writable(child, 0, 4);
  const WrittenRows one(1, 3), two(2, 3);
  const auto refuse = [&](int layer, std::vector<std::int64_t> positions, const WrittenRows& rows) {
    expect_refused<InvalidArgument>(
        cache, [&] { cache.write(layer, child, positions, rows.k_view, rows.v_view); });
  };
  refuse(0, {0, 4}, two);  // 4 is on the page that they share
  refuse(0, {0, 8}, two);
  refuse(0, {-1}, one);
  refuse(2, {0}, one);
  refuse(0, {0}, two);
  EXPECT_NO_THROW(cache.write(0, child, std::vector<std::int64_t>{0, 3}, two.k_view, two.v_view));
  expect_refused<InvalidArgument>(cache, [&] { cache.make_writable(child, 0, 9); });
  cache.reserve(child, 20);  // the pools are full: no page for the copy
  const Result<Done> refused = cache.try_make_writable(child, 4, 6);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.reason().asked_pages(), 1);
}

TEST(Write, MakesPlansOfAReplacedPageStale) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, small_cache_options());
  const SequenceId parent = cache.create();
  fill(cache, parent, 6);
  const SequenceId child = cache.fork(parent);
  StepPlan of_parent = cache.plan({{parent, 0, 1}}), of_child = cache.plan({{child, 0, 1}});
  cache.make_writable(child, 0, 1);
  const WrittenRows none(0, 0);
  EXPECT_NO_THROW(of_parent.append(0, none.k_view, none.v_view));
  EXPECT_THROW(of_child.append(0, none.k_view, none.v_view), InvalidArgument);
  cache.replan(of_child, std::vector<BatchEntry>{{child, 0, 1}});
  EXPECT_NO_THROW(of_child.append(0, none.k_view, none.v_view));
}

}  // namespace
}  // namespace kvmesh::test
