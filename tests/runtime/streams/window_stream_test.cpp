// Sequences with windows in streams: a stream begins where the exporter's window did, which may be
// within a page of the importer.
#include <limits>

#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

constexpr std::int64_t kWindow = 8;

/// Layer 0 sees all tokens, layer 1 a window.
CacheOptions windowed(int page_size) {
  CacheOptions options = options_of({.page_size = page_size});
  options.layers = 2;
  options.q_heads = options.kv_heads = 1;
  options.k_dim = options.v_dim = 4;
  options.groups = {{.layers = {1}, .window = kWindow}};
  return options;
}

/// Tokens whose keys are 0 and whose values are their positions; so an output is the mean of the
/// positions that its query sees.
class Positions {
 public:
  Positions(Mesh& mesh, int page_size) : mesh_(mesh), cache_(mesh, windowed(page_size)) {}

  KvCache& cache() { return cache_; }

  /// Appends one step of tokens, with one query for each.
  void append(SequenceId sequence, std::int64_t tokens, float offset = 0) {
    const std::int64_t begin = cache_.length(sequence);
    StepPlan plan = cache_.plan({{sequence, tokens}});
    const std::vector<float> zeros(static_cast<std::size_t>(tokens * 4));
    std::vector<float> v(zeros), o(zeros);
    for (std::size_t i = 0; i < v.size(); ++i)
      v[i] = static_cast<float>(begin) + static_cast<float>(i / 4) + offset;
    for (int layer = 0; layer < 2; ++layer)
      plan.run(layer,
               {tensor(zeros.data(), {tokens, 1, 4}), tensor(zeros.data(), {tokens, 1, 4}),
                tensor(v.data(), {tokens, 1, 4})},
               {tensor(o.data(), {tokens, 1, 4})});
  }

  /// Leaves values in all pages that no token has.
  void spoil() {
    const SequenceId sequence = cache_.create();
    const std::int64_t tokens = cache_.allocator(1).free_pages() * cache_.options().page_size;
    append(sequence, tokens, std::numeric_limits<float>::infinity());
    cache_.erase(sequence);
  }

  /// Expects that a query at the sequence's last position sees its window.
  void expect_seen(SequenceId sequence) {
    StepPlan plan = cache_.plan({{sequence, 0, 1}});
    const std::vector<float> q(4);
    std::vector<float> o(4);
    plan.run(1, {.q = tensor(q.data(), {1, 1, 4})}, {tensor(o.data(), {1, 1, 4})});
    const std::int64_t end = cache_.length(sequence),
                       begin = std::max<std::int64_t>(end - kWindow, 0);
    EXPECT_FLOAT_EQ(o[0], static_cast<float>(begin + end - 1) / 2) << "of " << end << " tokens";
  }

  SequenceId import(const Stream& stream) {
    MemorySource source(stream);
    const SequenceId sequence =
        cache_.import_sequence(mesh_.rank().value == 0 ? &source : nullptr).sequence;
    cache_.allocator(1).verify_integrity();
    return sequence;
  }

  PrefixKey key(std::int64_t tokens) const {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
    std::iota(ids.begin(), ids.end(), 0);
    PrefixKey key = cache_.make_prefix_key();
    key.append(ids);
    return key;
  }

  void publish(SequenceId sequence) {
    cache_.publish(sequence, key(cache_.length(sequence)));
    cache_.allocator(1).verify_integrity();
  }

 private:
  Mesh& mesh_;
  KvCache cache_;
};

/// On one rank and on two; `check` gets a cache with another page size, and the stream of a
/// sequence of 54 tokens, which begins at token 44 in layer 1.
template <class Check>
void with_imports(const Check& check) {
  for (const int ranks : {1, 2}) {
    run_on_threads(ranks,
                   [&](Mesh& mesh) {
                     Positions from(mesh, 4), to(mesh, 16);
                     const SequenceId sequence = from.cache().create();
                     for (int i = 0; i < 54; ++i) from.append(sequence, 1);
                     Stream stream = export_of(mesh, from.cache(), sequence);
                     EXPECT_EQ(from.cache().allocator(1).first_kept(sequence), 44);
                     to.spoil();
                     check(to, stream, mesh);
                   },
                   {.threads = 1, .device = DeviceChoice::kCpu});
  }
}

TEST(WindowStream, IsReadNoFurtherBackThanItBegins) {
  with_imports([](Positions& to, const Stream& stream, Mesh&) {
    KvCache& cache = to.cache();
    const SequenceId sequence = to.import(stream), fork = cache.fork(sequence);
    to.expect_seen(sequence);
    EXPECT_THROW(static_cast<void>(cache.plan({{sequence, 0, 4}})), InvalidArgument);
    EXPECT_NO_THROW(static_cast<void>(cache.plan({{sequence, 0, 3}})));
    for (const SequenceId id : {sequence, fork}) {
      EXPECT_THROW(cache.truncate(id, 50), InvalidArgument);
      cache.truncate(id, 52);
      to.expect_seen(id);
      cache.truncate(id, 51);
      EXPECT_THROW(static_cast<void>(cache.plan({{id, 0, 1}})), InvalidArgument);
      to.append(id, 1);
      to.expect_seen(id);
      const std::vector<float> row(4);
      cache.make_writable(id, 43, 45);
      const auto write = [&](std::int64_t position) {
        cache.write(1, id, {&position, 1}, tensor(row.data(), {1, 1, 4}),
                    tensor(row.data(), {1, 1, 4}));
      };
      EXPECT_THROW(write(43), InvalidArgument);
      EXPECT_NO_THROW(write(44));
    }
  });
}

TEST(WindowStream, BeginsWhereItDidWhenItIsExportedAgain) {
  with_imports([](Positions& to, const Stream& stream, Mesh& mesh) {
    const SequenceId sequence = to.import(stream);
    EXPECT_EQ(export_of(mesh, to.cache(), sequence), stream);
    EXPECT_EQ(export_of(mesh, to.cache(), to.cache().fork(sequence)), stream);
  });
}

/// A page of which the stream has only some tokens is none for later requests.
TEST(WindowStream, IsFoundFromItsFirstWholePageOn) {
  with_imports([](Positions& to, const Stream& stream, Mesh&) {
    KvCache& cache = to.cache();
    const SequenceId sequence = to.import(stream);
    to.publish(sequence);
    EXPECT_EQ(cache.length(cache.create_with_prefix(to.key(54))), 0);
    for (int i = 0; i < 30; ++i) to.append(sequence, 1);
    to.publish(sequence);
    cache.erase(sequence);
    const SequenceId found = cache.create_with_prefix(to.key(84));
    EXPECT_EQ(cache.length(found), 80);
    to.append(found, 1);
    to.expect_seen(found);
    EXPECT_EQ(cache.length(cache.create_with_prefix(to.key(79))), 0) << "needs tokens before 64";
  });
}

TEST(WindowStream, MayBeShorterThanTheWindow) {
  for (const std::int64_t tokens : {0, 1, 6, 7, 8, 9}) {
    run_on_threads(2,
                   [&](Mesh& mesh) {
                     Positions from(mesh, 4), to(mesh, 3);
                     const SequenceId sequence = from.cache().create();
                     if (tokens > 0) from.append(sequence, tokens);
                     const Stream stream = export_of(mesh, from.cache(), sequence);
                     const SequenceId imported = to.import(stream);
                     EXPECT_EQ(to.cache().length(imported), tokens);
                     if (tokens > 0) to.expect_seen(imported);
                     to.append(imported, 3);
                     to.expect_seen(imported);
                   },
                   {.threads = 1, .device = DeviceChoice::kCpu});
  }
}

CacheOptions small_window(std::int64_t pages) {
  CacheOptions options = windowed(4);
  options.groups = {};
  options.layers = 1;
  options.window = kWindow;
  options.pages_per_rank = pages;
  return options;
}

TEST(WindowStream, TakesNoMorePagesThanTheImporterKeeps) {
  run_on_threads(2,
                 [](Mesh& mesh) {
                   KvCache from(mesh, small_window(8)), to(mesh, small_window(2));
                   const SequenceId sequence = from.create();
                   const std::vector<float> zeros(16);
                   for (int i = 0; i < 50; ++i) {
                     StepPlan plan = from.plan({{sequence, 4}});
                     std::vector<float> o(16);
                     const ConstTensorView four = tensor(zeros.data(), {4, 1, 4});
                     plan.run(0, {.q = four, .k = four, .v = four}, {tensor(o.data(), {4, 1, 4})});
                   }
                   const Stream stream = export_of(mesh, from, sequence);
                   MemorySource source(stream);
                   ByteSource* const read = mesh.rank().value == 0 ? &source : nullptr;
                   const SequenceId imported = to.import_sequence(read).sequence;
                   EXPECT_EQ(to.length(imported), 200);
                   EXPECT_EQ(to.allocator().first_kept(imported),
                             from.allocator().first_kept(sequence));
                   EXPECT_EQ(to.allocator().evicted_pages(), 0);
                   to.allocator().verify_integrity();
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
}

// The group with the window has room, after it has evicted pages; the other group has not.
TEST(WindowStream, ThatOneGroupHasNoRoomForEvictsNothingOfAnother) {
  run_on_threads(1,
                 [](Mesh& mesh) {
                   CacheOptions options = small_window(14);
                   options.layers = 2;
                   options.groups = {{.layers = {1}}};
                   KvCache from(mesh, options);
                   options.pages_per_rank = 8;
                   options.prefix.enabled = true;
                   KvCache to(mesh, options);
                   const SequenceId sequence = from.create();
                   for (int i = 0; i < 14; ++i) from.plan({{sequence, 4}});
                   for (int prompt = 0; prompt < 4; ++prompt) {
                     const SequenceId cached = to.create();
                     to.plan({{cached, 8}});
                     PrefixKey key = to.make_prefix_key();
                     key.append(std::vector<std::int32_t>(8, prompt));
                     to.publish(cached, key);
                     to.erase(cached);
                   }
                   const Stream stream = export_of(mesh, from, sequence);
                   MemorySource source(stream);
                   for (const int group : {0, 1}) {
                     ASSERT_EQ(to.allocator(group).cached_pages(), 8) << group;
                     ASSERT_EQ(to.allocator(group).free_pages(), 8) << group;
                   }
                   EXPECT_THROW(to.import_sequence(&source), OutOfPages);
                   for (const int group : {0, 1}) {
                     EXPECT_EQ(to.allocator(group).evicted_pages(), 0) << group;
                     EXPECT_EQ(to.allocator(group).cached_pages(), 8) << group;
                   }
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
}

}  // namespace
}  // namespace kvmesh::test
