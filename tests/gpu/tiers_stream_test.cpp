// Copies of tiers run beside the device's other work, and steps wait for the copies alone.
#include <gtest/gtest.h>

#include "tests/gpu/held_stream.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {
namespace {

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

  Mesh mesh_{make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCuda}};
  KvCache plain_{mesh_, tier_options(12)};
  std::optional<KvCache> cache_;
  StepPlan plan_;
  Stream stream_;
};

TEST_F(TierStreams, MatchesAndReplansDoNotWaitForTheDevice) {
  PrefixKey key = cache_->make_prefix_key();
  key.append(counted(0, 19));
  const Device device = mesh_.device();
  const auto last = key.tokens().last(3);
  const OnDevice k(device, rows_of(last, 16, kKDim, 0, kHeads));
  const OnDevice v(device, rows_of(last, 16, kVDim, 0, kHeads));
  const OnDevice q(device, std::vector<float>(kQHeads * kKDim, 0.25f));
  const OnDevice o(device, std::vector<float>(kQHeads * kVDim, -1));
  for (Communicator* each : {&mesh_.world(), &mesh_.kv()})
    each->set_deadline(std::chrono::seconds(2));
  HeldStream other;  // all work of the device would wait for it, and so would memory to be freed
  const SequenceId sequence = cache_->create_with_prefix(key, stream());
  EXPECT_EQ(cache_->length(sequence), 16);
  cache_->replan(plan_, {{sequence, 3, 1}}, stream());
  for (int layer = 0; layer < cache_->options().layers; ++layer)
    plan_.run(layer,
              {q.view({1, kQHeads, kKDim}), k.view({3, kHeads, kKDim}), v.view({3, kHeads, kVDim})},
              {o.view({1, kQHeads, kVDim}), {}}, stream());
  mesh_.wait(stream(), "test");
  other.release();
  EXPECT_GT(cache_->tier_statistics().pages_back, 0);
  const std::vector<float> expected = prefill(plain_, plain_.create(), key), got = o.numbers();
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
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
