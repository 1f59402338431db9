// Tests the checker's pages of an engine: what they hold, and that writes between rows are noticed.
#include "launch/verify/engine_pages.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstring>

#include "launch/verify/checked_cache.hpp"
#include "tests/contracts/on_each_placement.hpp"

namespace kvmesh::test {
namespace {

using verify::EngineForm;
using verify::EnginePages;
using verify::ValuePlace;

std::vector<EngineForm> forms() {
  std::vector<EngineForm> all;
  for (const bool heads_first : {true, false}) {
    for (const ValuePlace values :
         {ValuePlace::kApart, ValuePlace::kPaired, ValuePlace::kSideBySide}) {
      for (const std::int64_t interleave : {0, 1, 2 * kSmallShape.page_size}) {
        all.push_back({heads_first, values, interleave == 0 ? 3 : 0, interleave});
      }
    }
  }
  return all;
}

/// One rank's cache with a sequence of 21 tokens, and its pages in another form.
class SmallEngine {
 public:
  explicit SmallEngine(const EngineForm& form)
      : mesh_(make_single_communicator(), {.threads = 1}),
        cache_(mesh_, small_cache(kSmallShape), 7),
        sequence_(prompt(cache_, 21)),
        pages_(mesh_, cache_.cache().pool(0), {0, kSmallShape.kv_heads}, form, 12) {
    pages_.fill(cache_.cache().pool(0), cache_.allocator(), {{{sequence_, 21, 1, 2}}});
  }

  /// The first elements of a token's key and value.
  std::pair<float*, float*> token(std::int64_t position, std::int64_t head) {
    const PageTables tables = pages_.tables();
    const std::int64_t size = kSmallShape.page_size;
    return token_in(pages_.on_device(), tables.indices[static_cast<std::size_t>(position / size)],
                    head, position % size);
  }
  std::pair<float*, float*> token_of_cache(std::int64_t position, std::int64_t head) {
    const std::int64_t size = kSmallShape.page_size;
    const PageId page =
        cache_.allocator().pages(sequence_)[static_cast<std::size_t>(position / size)];
    return token_in(cache_.cache().pool(0), page.index(), head, position % size);
  }
  EnginePages& pages() { return pages_; }

 private:
  static std::pair<float*, float*> token_in(const KvPool& pool, std::int64_t page,
                                            std::int64_t head, std::int64_t offset) {
    const auto first = [&](const TensorView& view) {
      return static_cast<float*>(view.data) + page * view.stride(0) + head * view.stride(1) +
             offset * view.stride(2);
    };
    return {first(pool.k), first(pool.v)};
  }

  Mesh mesh_;
  CheckedCache cache_;
  SequenceId sequence_;
  EnginePages pages_;
};

TEST(VerifyEnginePages, HoldAllTokensButTheAppendedOnes) {
  for (const EngineForm& form : forms()) {
    SCOPED_TRACE(verify::describe(form));
    SmallEngine engine(form);
    for (std::int64_t position = 0; position < 21; ++position) {
      for (std::int64_t head = 0; head < kSmallShape.kv_heads; ++head) {
        const auto [k, v] = engine.token(position, head);
        const auto [want_k, want_v] = engine.token_of_cache(position, head);
        if (position == 20) {
          EXPECT_TRUE(std::isnan(*k) && std::isnan(*v));
          continue;
        }
        EXPECT_EQ(std::memcmp(k, want_k, sizeof(float) * kSmallShape.k_dim), 0) << position;
        EXPECT_EQ(std::memcmp(v, want_v, sizeof(float) * kSmallShape.v_dim), 0) << position;
      }
    }
  }
}

TEST(VerifyEnginePages, NoticeWritesWhereNoTokenIs) {
  for (const EngineForm& form : forms()) {
    SCOPED_TRACE(verify::describe(form));
    for (const std::int64_t position : {20, 21}) {
      SmallEngine engine(form);
      *engine.token(position, 1).second = 1.0f;
      EXPECT_EQ(engine.pages().gaps_untouched(), position == 20) << position;
    }
    if (form.gap == 0) continue;
    SmallEngine engine(form);
    const auto [k, v] = engine.token(3, 0);
    if (form.values == ValuePlace::kSideBySide) {
      v[kSmallShape.v_dim] = 1.0f;
    } else {
      k[kSmallShape.k_dim] = 1.0f;
    }
    EXPECT_FALSE(engine.pages().gaps_untouched());
  }
}

// Steps over the engine's pages do not read the cache's own, which then have a wrong number. Paired
// values have as many elements as keys, so that lists and any interleave can take these pages.
TEST(VerifyEnginePages, TakeThePlaceOfTheCachesPages) {
  ContractShape shape = kSmallShape;
  shape.v_dim = shape.k_dim;
  for (const int ranks : {1, 3}) {
    for (const EngineForm& form : forms()) {
      std::atomic<std::int64_t> failed = 0;
      run_on_threads(ranks, [&](Mesh& mesh) {
        SCOPED_TRACE(verify::describe(form));
        CheckedCache cache(mesh, small_cache(shape), 7);
        const SequenceId sequence = prompt(cache, 40);
        const PageId page = cache.allocator().pages(sequence)[5];
        if (page.rank() == mesh.page_rank()) {
          const TensorView v = cache.cache().pool(1).v;
          static_cast<float*>(v.data)[page.index() * v.stride(0)] += 4.0f;
        }
        verify::StepOptions options{.external = true, .engine = form};
        EXPECT_TRUE(cache.step({{sequence, 2}}, options));
        options.lists = {.positions = {5, -1, 40}, .length = 3};
        EXPECT_TRUE(cache.step({{sequence, 1}}, options));
        for (const std::string& message : cache.findings().messages()) ADD_FAILURE() << message;
        EXPECT_TRUE(cache.step({{sequence, 1}}));
        failed += cache.findings().failed();
      });
      EXPECT_GT(failed, 0) << verify::describe(form);
    }
  }
}

}  // namespace
}  // namespace kvmesh::test
