// Writes at any position and the prefix cache, with invalid arguments.
#include "kvmesh/kvmesh.hpp"
#include "tests/runtime/cache/cache_fixture.hpp"
#include "tests/support/hostile.hpp"

namespace kvmesh::test {
namespace {

CacheOptions with_prefix() {
  CacheOptions options = small_cache_options();
  options.prefix.enabled = true;
  return options;
}

class HostileWrites : public testing::Test {
 protected:
  HostileWrites() { cache_.reserve(sequence_, 8); }
  template <class E, class Call>
  void refuse(const Call& call) {
    expect_refused<E>(cache_, call);
  }
  void write(int layer, SequenceId id, std::vector<std::int64_t> positions,
             const ConstTensorView& k, const ConstTensorView& v) {
    cache_.write(layer, id, positions, k, v, {});
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1}};
  KvCache cache_{mesh_, with_prefix()};
  SequenceId sequence_ = cache_.create();
  std::vector<float> memory_ = std::vector<float>(256, 0.5f);
  TensorView k_ = tensor(memory_.data(), {2, 2, 8}), v_ = tensor(memory_.data() + 64, {2, 2, 6});
};

TEST_F(HostileWrites, TensorsPositionsLayersAndIds) {
  const CacheImage before(cache_);
  const auto in = spoils<TensorView>();
  expect_refuses("write: k", k_, in, [&](auto& k) { write(0, sequence_, {0, 1}, k, v_); });
  expect_refuses("write: v", v_, in, [&](auto& v) { write(0, sequence_, {0, 1}, k_, v); });
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{8}, kMost}) {
    refuse<InvalidArgument>([&] { write(0, sequence_, {0, bad}, k_, v_); });
  }
  refuse<InvalidArgument>([&] { write(0, sequence_, {0}, k_, v_); });
  for (int bad : {kLeastInt, -1, 2, kMostInt}) {
    refuse<InvalidArgument>([&] { write(bad, sequence_, {0, 1}, k_, v_); });
  }
  KvCache other(mesh_, with_prefix());
  for (SequenceId id : {other.create(), SequenceId{}, SequenceId{~std::uint64_t{0}}}) {
    refuse<UnknownSequence>([&] { write(0, id, {0, 1}, k_, v_); });
    refuse<UnknownSequence>([&] { cache_.make_writable(id, 0, 0); });
  }
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, kMost}) {
    refuse<InvalidArgument>([&] { cache_.make_writable(sequence_, 0, bad); });
    refuse<InvalidArgument>([&] { (void)cache_.try_make_writable(sequence_, bad, 0); });
  }
}

TEST(HostilePrefix, RulesAndTokens) {
  for (int bad : {kLeastInt, -1, 0}) {
    EXPECT_THROW(PrefixKey(PrefixRules{.page_size = bad}), InvalidArgument) << bad;
  }
  EXPECT_THROW(PrefixKey(PrefixRules{.hash = static_cast<PrefixHash>(99)}), InvalidArgument);
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, kMost}) {
    const PrefixExtras at{.items = {{"image", bad, 4}}}, of{.items = {{"image", 1, bad}}};
    EXPECT_THROW(PrefixKey(PrefixRules{}, at), InvalidArgument) << bad;
    EXPECT_THROW(PrefixKey(PrefixRules{}, of), InvalidArgument) << bad;
  }
  PrefixKey key(PrefixRules{.page_size = 2});
  for (std::int32_t bad : {kLeastInt, -1}) {
    EXPECT_THROW(key.append(std::vector<std::int32_t>{1, bad}), InvalidArgument) << bad;
  }
  EXPECT_TRUE(key.tokens().empty());
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, std::int64_t{1}, kMost}) {
    EXPECT_THROW(key.truncate(bad), InvalidArgument) << bad;
  }
  const PrefixKey image(PrefixRules{.page_size = 2}, {.items = {{"image", 0, kMost}}});
  for (std::int64_t bad : {kLeast, std::int64_t{-1}, kMost}) EXPECT_FALSE(image.has_items(bad));
}

TEST_F(HostileWrites, OptionsOfThePrefixCache) {
  CacheOptions options = with_prefix();
  options.prefix.hash = static_cast<PrefixHash>(99);
  EXPECT_THROW(KvCache(mesh_, options), InvalidArgument);
  options = with_prefix();
  options.prefix.eviction = static_cast<Eviction>(99);
  EXPECT_THROW(KvCache(mesh_, options), InvalidArgument);
}

TEST_F(HostileWrites, KeysMatchesAndRetentions) {
  fill(cache_, sequence_, 8);
  PrefixKey key = cache_.make_prefix_key();
  key.append(std::vector<std::int32_t>{1, 2, 3, 4, 5, 6, 7, 8});
  const PrefixKey other(PrefixRules{.page_size = 3});
  refuse<InvalidArgument>([&] { (void)cache_.match_prefix(other); });
  refuse<InvalidArgument>([&] { (void)cache_.create_with_prefix(other); });
  refuse<InvalidArgument>([&] { cache_.publish(sequence_, other); });
  for (const Retention& bad : {Retention{kLeast, 1}, Retention{-1, 1}, Retention{0, kLeast},
                               Retention{0, -1}, Retention{0, 1, -1}, Retention{0, 1, 101},
                               Retention{0, 1, kMostInt}, Retention{0, 1, kLeastInt}}) {
    refuse<InvalidArgument>([&] { cache_.publish(sequence_, key, {&bad, 1}); });
  }
  KvCache another(mesh_, with_prefix());
  for (SequenceId id : {another.create(), SequenceId{~std::uint64_t{0}}}) {
    refuse<UnknownSequence>([&] { cache_.publish(id, key); });
    refuse<UnknownSequence>([&] { cache_.release({.pin = id, .tokens = 4}); });
    refuse<UnknownSequence>(
        [&] { (void)cache_.create_with_prefix(PrefixMatch{.pin = id, .tokens = 4}); });
  }
  refuse<InvalidArgument>([&] { cache_.release({.pin = sequence_, .tokens = 8}); });
  cache_.publish(sequence_, key);
  PrefixMatch match = cache_.match_prefix(key);
  EXPECT_EQ(match.tokens, 8);
  const SequenceId made = cache_.create_with_prefix(match);
  refuse<InvalidArgument>([&] { cache_.release(match); });  // it would erase the sequence
  refuse<InvalidArgument>([&] { (void)cache_.create_with_prefix(match); });
  EXPECT_TRUE(cache_.allocator().contains(made));
  match = cache_.match_prefix(key);
  cache_.release(match);
  refuse<UnknownSequence>([&] { cache_.release(match); });
}

}  // namespace
}  // namespace kvmesh::test
