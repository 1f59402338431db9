// The prefix cache through KvCache: a second request reads what the first one wrote.
#include <numeric>

#include "tests/runtime/cache/cache_fixture.hpp"

namespace kvmesh::test {
namespace {

constexpr int kHeads = 2, kKDim = 8, kVDim = 6, kQHeads = 4;

std::vector<std::int32_t> counted(std::int32_t first, std::size_t count) {
  std::vector<std::int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

/// Keys and values that depend on tokens and positions.
std::vector<float> rows_of(std::span<const std::int32_t> tokens, std::int64_t first, int dim) {
  std::vector<float> rows;
  for (std::size_t i = 0; i < tokens.size(); ++i)
    for (int j = 0; j < kHeads * dim; ++j)
      rows.push_back(
          static_cast<float>((tokens[i] * 7 + (first + static_cast<int>(i)) * 3 + j) % 11) - 5);
  return rows;
}

/// Appends the key's tokens past the sequence's length in every layer, and returns the output of
/// the last token in the last layer.
std::vector<float> prefill(KvCache& cache, SequenceId sequence, const PrefixKey& key) {
  const std::int64_t length = cache.allocator().length(sequence);
  const auto rest = key.tokens().subspan(static_cast<std::size_t>(length));
  const std::int64_t count = std::ssize(rest);
  StepPlan plan = cache.plan({{sequence, count, 1}});
  const std::vector<float> k = rows_of(rest, length, kKDim), v = rows_of(rest, length, kVDim);
  const std::vector<float> q(kQHeads * kKDim, 0.25f);
  std::vector<float> o(kQHeads * kVDim, -1);
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    plan.run(layer,
             {tensor(q.data(), {1, kQHeads, kKDim}), tensor(k.data(), {count, kHeads, kKDim}),
              tensor(v.data(), {count, kHeads, kVDim})},
             {tensor(o.data(), {1, kQHeads, kVDim}), {}});
  }
  return o;
}

CacheOptions prefix_options(int pages) {
  CacheOptions options = small_cache_options();
  options.pages_per_rank = pages;
  options.home_threshold_tokens = 8;  // longer ones have pages on all ranks
  options.prefix = {.enabled = true, .compares_tokens = true};
  return options;
}

TEST(PrefixCache, SecondRequestReadsPagesOfTheFirst) {
  for (int ranks = 1; ranks <= 3; ++ranks) {
    run_on_threads(ranks,
                   [](Mesh& mesh) {
                     KvCache cache(mesh, prefix_options(12)), plain(mesh, prefix_options(16));
                     PrefixKey key = cache.make_prefix_key();
                     key.append(counted(0, 26));
                     const SequenceId first = cache.create_with_prefix(key);
                     EXPECT_EQ(cache.allocator().length(first), 0);
                     (void)prefill(cache, first, key);
                     cache.publish(first, key);
                     cache.erase(first);
                     EXPECT_EQ(cache.allocator().cached_pages(), 6);

                     // 22 tokens are those of the first request, the last two inside of a page.
                     PrefixKey second_key = cache.make_prefix_key();
                     second_key.append(counted(0, 22));
                     second_key.append(counted(90, 7));
                     const SequenceId second = cache.create_with_prefix(second_key);
                     EXPECT_EQ(cache.allocator().length(second), 22);
                     const SequenceId alone = plain.create();
                     const std::vector<float> expected = prefill(plain, alone, second_key);
                     const std::vector<float> got = prefill(cache, second, second_key);
                     for (std::size_t i = 0; i < got.size(); ++i)
                       EXPECT_NEAR(got[i], expected[i], 1e-5);

                     // The second request's shared pages still hold what the first wrote.
                     const SequenceId again = cache.create_with_prefix(key);
                     EXPECT_EQ(cache.allocator().length(again), 24);
                     const std::vector<float> fresh = prefill(plain, plain.create(), key);
                     const std::vector<float> shared = prefill(cache, again, key);
                     for (std::size_t i = 0; i < fresh.size(); ++i)
                       EXPECT_NEAR(shared[i], fresh[i], 1e-5);
                     cache.check_replicas();
                     cache.allocator().verify_integrity();
                   },
                   {.threads = 1});
  }
}

TEST(PrefixCache, EqualPagesBecomeOne) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, prefix_options(12));
  PrefixKey key = cache.make_prefix_key();
  key.append(counted(0, 9));
  const SequenceId a = cache.create_with_prefix(key), b = cache.create_with_prefix(key);
  (void)prefill(cache, a, key);
  (void)prefill(cache, b, key);
  EXPECT_EQ(cache.allocator().free_pages(), 6);
  cache.publish(a, key);
  cache.publish(b, key);
  EXPECT_EQ(cache.allocator().free_pages(), 8);
  EXPECT_EQ(cache.allocator().pages(a)[1], cache.allocator().pages(b)[1]);
  EXPECT_NE(cache.allocator().pages(a)[2], cache.allocator().pages(b)[2]) << "not full";
  expect_refused<InvalidArgument>(cache, [&] {
    const std::vector<float> k(kHeads * kKDim), v(kHeads * kVDim);
    cache.write(0, a, std::vector<std::int64_t>{0}, tensor(k.data(), {1, kHeads, kKDim}),
                tensor(v.data(), {1, kHeads, kVDim}));
  });
}

TEST(PrefixCache, SeparatesTenantsAndPinsMatches) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, prefix_options(6));
  PrefixKey key = cache.make_prefix_key({.salt = "a"}),
            other = cache.make_prefix_key({.salt = "b"});
  key.append(counted(0, 16));
  other.append(counted(0, 16));
  const SequenceId first = cache.create_with_prefix(key);
  (void)prefill(cache, first, key);
  cache.publish(first, key);
  cache.erase(first);
  EXPECT_EQ(cache.match_prefix(other).tokens, 0);
  const PrefixMatch match = cache.match_prefix(key);
  EXPECT_EQ(match.tokens, 16);
  EXPECT_EQ(cache.allocator().free_pages(), 2) << "four pages are pinned";
  const SequenceId large = cache.create();
  EXPECT_FALSE(cache.try_reserve(large, 12)) << "nothing can be evicted";
  cache.release(match);
  EXPECT_TRUE(cache.try_reserve(large, 12)) << "one page is evicted, the last of the chain";
  EXPECT_EQ(cache.match_prefix(key).tokens, 12);
  EXPECT_THROW((void)cache.create_with_prefix(match), UnknownSequence);
}

TEST(PrefixCache, RejectsKeysOfOtherRulesAndTokens) {
  Mesh mesh(make_single_communicator(), {.threads = 1});
  KvCache cache(mesh, prefix_options(12)), off(mesh, small_cache_options());
  PrefixKey key = cache.make_prefix_key(), other = cache.make_prefix_key();
  key.append(counted(0, 8));
  other.append(counted(1, 8));
  const PrefixKey wide(PrefixRules{.page_size = 8});
  expect_refused<InvalidArgument>(cache, [&] { (void)cache.match_prefix(wide); });
  expect_refused<InvalidArgument>(off, [&] { (void)off.match_prefix(key); });
  const SequenceId sequence = cache.create_with_prefix(key);
  (void)prefill(cache, sequence, key);
  cache.publish(sequence, key);
  expect_refused<InvalidArgument>(cache, [&] { cache.publish(sequence, other); });
  const Retention wrong{.first = 0, .tokens = 4, .priority = 101};
  expect_refused<InvalidArgument>(cache, [&] { cache.publish(sequence, key, {&wrong, 1}); });
}

}  // namespace
}  // namespace kvmesh::test
