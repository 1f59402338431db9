// Tiers of a cache over any ranks and devices: what was evicted comes back, with the same bytes.
#pragma once

#include <functional>
#include <random>

#include "core/cuda/memory.hpp"
#include "tests/contracts/places.hpp"
#include "tests/runtime/tiers/tiers_fixture.hpp"

namespace kvmesh::test {

using TierPlaces =
    testing::Types<OnCpu<LoopbackRanks<1>>, OnCpu<LoopbackRanks<2>>, OnCpu<LoopbackRanks<3>>,
                   OnCpu<LoopbackRanks<3>, LatentSizes>, OnCpu<LoopbackRanks<2>, Float8Sizes>>;

/// A stream that waits for no other; on the CPU none.
class StepStream {
 public:
  explicit StepStream(Device device) {
    if (device.kind == DeviceKind::kCuda) stream_ = cuda_memory::make_stream(device.index);
  }
  kvmesh::Stream view() const { return {stream_.get()}; }

 private:
  cuda_memory::OwnedStream stream_;
};

template <class Place>
class TiersContract : public testing::Test {
 protected:
  /// The small cache of the tiers' tests, with the place's pages.
  static CacheOptions options(int pages) {
    CacheOptions made = tier_options(pages);
    made.page_kind = Place::small().page_kind;
    made.dtype = Place::small().dtype;
    return made;
  }
  /// All planes of a page, on one rank of all heads.
  static std::int64_t page_bytes() {
    const CacheOptions made = options(1);
    const PageFormat format = make_page_format({kQHeads, kHeads, kKDim, kVDim, kPage},
                                               {made.page_kind, made.dtype, made.scales});
    std::int64_t bytes = 0;
    for (const PagePlane& plane : format.planes) {
      bytes += plane.elements * static_cast<std::int64_t>(size_bytes(plane.dtype));
    }
    return made.layers * kHeads * kPage * bytes;
  }

  /// Calls `body(mesh, folder)` on each rank, with the path of one folder for all.
  static void on_ranks(const std::function<void(Mesh&, const std::string&)>& body) {
    Place::run([&](Communicator& comm) {
      std::int64_t name = ::getpid();
      broadcast(comm, Rank{0}, std::as_writable_bytes(std::span(&name, 1)), "name a folder");
      const std::string path = fs::temp_directory_path() / ("tiers." + std::to_string(name));
      const auto remove = [&] {
        if (comm.rank().value == 0) fs::remove_all(path);
        barrier(comm);
      };
      remove();
      Mesh mesh(comm, {.threads = 1, .device = Place::kDevice});
      body(mesh, path);
      barrier(comm);
      remove();
    });
  }
};
TYPED_TEST_SUITE_P(TiersContract);

TYPED_TEST_P(TiersContract, EvictedPagesComeBack) {
  this->on_ranks([](Mesh& mesh, const std::string&) {
    for (const bool replans : {false, true}) {
      CacheOptions options = TestFixture::options(6);
      KvCache plain(mesh, TestFixture::options(12));
      options.tiers.host_bytes = 12 * TestFixture::page_bytes();
      KvCache cache(mesh, options);
      const StepStream stream(mesh.device());
      StepPlan plan = cache.plan({}, {.scatter = Scatter::kAll});
      StepPlan* const step = replans ? &plan : nullptr;
      const auto first = counted(0, 16);
      EXPECT_EQ(ask(cache, plain, first, step, stream.view()), 0);
      for (int i = 1; i <= 2 * mesh.size(); ++i)
        (void)ask(cache, plain, counted(100 * i, 16), step, stream.view());
      EXPECT_EQ(ask(cache, plain, first, step, stream.view()), 16) << mesh.size() << " ranks";
      EXPECT_GT(cache.tier_statistics().pages_back, 0);
    }
  });
}

TYPED_TEST_P(TiersContract, LaterCachesFindTheFiles) {
  this->on_ranks([](Mesh& mesh, const std::string& folder) {
    const StepStream stream(mesh.device());
    for (const auto& [found, way] :
         {std::pair(0, AskWay::kWaits), {20, AskWay::kWaits}, {20, AskWay::kNow}}) {
      CacheOptions options = TestFixture::options(8);
      options.tiers = {.directory = folder, .direct = mesh.size() == 2};
      KvCache cache(mesh, options), plain(mesh, TestFixture::options(12));
      StepPlan plan = cache.plan({}, {.scatter = Scatter::kAll});
      EXPECT_EQ(ask(cache, plain, counted(0, 22), &plan, stream.view(), way), found);
      cache.flush_tiers();
      barrier(mesh.world());
    }
  });
}

TYPED_TEST_P(TiersContract, RandomRequestsFindWhatTheyShould) {
  this->on_ranks([](Mesh& mesh, const std::string& folder) {
    for (const bool has_files : {false, true}) {
      CacheOptions options = TestFixture::options(6);
      options.tiers = {.host_bytes = 5 * TestFixture::page_bytes(),
                       .directory = has_files ? folder : std::string(),
                       .file_bytes = 20 * TestFixture::page_bytes(),
                       .stores_per_operation = 3};
      KvCache cache(mesh, options), plain(mesh, TestFixture::options(12));
      const StepStream stream(mesh.device());
      StepPlan plan = cache.plan({}, {.scatter = Scatter::kAll});
      std::mt19937 random(7);
      for (int i = 0; i < 60; ++i) {
        const auto tokens =
            counted(static_cast<std::int32_t>(random() % 5) * 40, 1 + random() % 14);
        StepPlan* const step = i % 3 == 0 ? nullptr : &plan;
        const std::int64_t found = ask(cache, plain, tokens, step, stream.view(),
                                       i % 2 == 0 ? AskWay::kWaits : AskWay::kNow);
        EXPECT_LE(found, std::ssize(tokens));
      }
      EXPECT_GT(cache.tier_statistics().pages_back, 0);
    }
  });
}

REGISTER_TYPED_TEST_SUITE_P(TiersContract, EvictedPagesComeBack, LaterCachesFindTheFiles,
                            RandomRequestsFindWhatTheyShould);

}  // namespace kvmesh::test
