// Copies of tiers and copies on write run beside the device's other work, and steps wait for the
// copies alone.
#include <gtest/gtest.h>

#include "tests/gpu/held_stream.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

/// A step that appends a key's tokens past `length`. Its tensors are made before work is held up:
/// memory can be neither made nor freed then.
class HeldUpStep {
 public:
  HeldUpStep(Device device, const PrefixKey& key, std::int64_t length)
      : count_(std::ssize(key.tokens()) - length),
        k_(device, rows_of(key.tokens().last(count()), length, kKDim, 0, kHeads)),
        v_(device, rows_of(key.tokens().last(count()), length, kVDim, 0, kHeads)),
        q_(device, std::vector<float>(kQHeads * kKDim, 0.25f)),
        o_(device, std::vector<float>(kQHeads * kVDim, -1)) {}

  void run(KvCache& cache, StepPlan& plan, SequenceId sequence, kvmesh::Stream stream) const {
    cache.replan(plan, {{sequence, count_, 1}}, stream);
    for (int layer = 0; layer < cache.options().layers; ++layer)
      plan.run(layer,
               {q_.view({1, kQHeads, kKDim}), k_.view({count_, kHeads, kKDim}),
                v_.view({count_, kHeads, kVDim})},
               {o_.view({1, kQHeads, kVDim}), {}}, stream);
    cache.mesh().wait(stream, "test");
  }
  void expect_output(const std::vector<float>& expected) const {
    const std::vector<float> got = o_.numbers();
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
  }

 private:
  std::size_t count() const { return static_cast<std::size_t>(count_); }

  std::int64_t count_;
  OnDevice k_, v_, q_, o_;
};

class TierStreams : public testing::Test {
 protected:
  TierStreams() {
    CacheOptions options = tier_options(6);
    options.tiers.host_bytes = 12 * page_bytes(1);
    cache_.emplace(mesh_, options);
    plan_ = cache_->plan({}, {.scatter = Scatter::kAll});
    (void)ask(*cache_, plain_, counted(0, 16), &plan_, stream());
    (void)ask(*cache_, plain_, counted(100, 16), &plan_, stream());  // evicts the first
  }
  kvmesh::Stream stream() const { return {static_cast<cudaStream_t>(stream_)}; }
  PrefixKey key_of(std::span<const std::int32_t> tokens) const {
    PrefixKey key = cache_->make_prefix_key();
    key.append(tokens);
    return key;
  }
  void set_deadlines(std::chrono::milliseconds deadline) {
    for (Communicator* each : {&mesh_.world(), &mesh_.kv_comm()}) each->set_deadline(deadline);
  }

  Mesh mesh_{make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCuda}};
  KvCache plain_{mesh_, tier_options(12)};
  std::optional<KvCache> cache_;
  StepPlan plan_;
  Stream stream_;
};

TEST_F(TierStreams, MatchesAndReplansDoNotWaitForTheDevice) {
  const PrefixKey key = key_of(counted(0, 19));
  const HeldUpStep step(mesh_.device(), key, 16);
  set_deadlines(std::chrono::seconds(2));
  HeldStream other;  // all work of the device would wait for it
  const SequenceId sequence = cache_->create_with_prefix(key, stream());
  EXPECT_EQ(cache_->length(sequence), 16);
  step.run(*cache_, plan_, sequence, stream());
  other.release();
  EXPECT_GT(cache_->tier_statistics().pages_back, 0);
  step.expect_output(prefill(plain_, plain_.create(), key));
}

TEST_F(TierStreams, CopiesOnWriteDoNotWaitForTheDevice) {
  const SequenceId parent = plain_.create();
  (void)prefill(plain_, parent, key_of(counted(0, 6)));
  const SequenceId child = plain_.fork(parent);  // shares a page of two tokens
  const PrefixKey key = key_of(counted(0, 9)),
                  of_parent = key_of(std::vector{0, 1, 2, 3, 4, 5, 50});
  StepPlan plan = plain_.plan({}, {.scatter = Scatter::kAll});
  const std::vector<float> expected = prefill(plain_, plain_.create(), key, &plan, stream());
  const HeldUpStep step(mesh_.device(), key, 6);
  set_deadlines(std::chrono::seconds(2));
  HeldStream other;
  step.run(plain_, plan, child, stream());
  other.release();
  step.expect_output(expected);
  const std::vector<float> got = prefill(plain_, parent, of_parent);
  const std::vector<float> unshared = prefill(plain_, plain_.create(), of_parent);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], unshared[i], 1e-5);
}

TEST_F(TierStreams, ReservesThatEvictDoNotWaitForTheDevice) {
  set_deadlines(std::chrono::seconds(2));
  const SequenceId all = cache_->create();
  const std::int64_t tokens = cache_->allocator().free_pages() * kPage;
  {
    HeldStream other;
    cache_->reserve(all, tokens, stream());
  }
  cache_->erase(all);
  const std::int64_t before = cache_->tier_statistics().pages_back;
  EXPECT_EQ(ask(*cache_, plain_, counted(100, 16), &plan_, stream()), 16);
  EXPECT_EQ(cache_->tier_statistics().pages_back, before + 4);
}

TEST_F(TierStreams, MakeWritableDoesNotWaitForTheDevice) {
  const SequenceId parent = plain_.create();
  (void)prefill(plain_, parent, key_of(counted(0, 6)));
  const SequenceId child = plain_.fork(parent);  // shares a page of two tokens
  StepPlan plan = plain_.plan({}, {.scatter = Scatter::kAll});
  const PrefixKey key = key_of(counted(0, 9));
  const std::vector<float> expected = prefill(plain_, plain_.create(), key, &plan, stream());
  set_deadlines(std::chrono::seconds(2));
  {
    HeldStream other;
    plain_.make_writable(child, 5, 6, stream());
  }
  EXPECT_NE(plain_.allocator().pages(child).back(), plain_.allocator().pages(parent).back());
  for (const SequenceId sequence : {child, parent}) {
    const std::vector<float> got = prefill(plain_, sequence, key, &plan, stream());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
  }
}

// The stream stands still, so neither may the pages have come nor the step have run.
TEST_F(TierStreams, CopiesAndStepsKeepTheOrderOfAStreamThatStandsStill) {
  PrefixKey key = cache_->make_prefix_key();
  key.append(counted(0, 16));
  HeldStream held;
  const SequenceId sequence = cache_->create_with_prefix(key, held.view());
  EXPECT_EQ(cache_->length(sequence), 16);
  cache_->replan(plan_, {{sequence, 1, 1}}, held.view());
  mesh_.world().set_deadline(std::chrono::milliseconds(100));
  EXPECT_THROW((void)cache_->planes(0), Timeout) << "the copies are under way";
  mesh_.world().set_deadline(std::chrono::seconds(10));
  held.release();
  (void)cache_->planes(0);
  mesh_.wait(held.view(), "test");
  cache_->erase(sequence);
  EXPECT_EQ(ask(*cache_, plain_, counted(0, 16), &plan_, stream()), 16);
}

}  // namespace
}  // namespace kvmesh::test
