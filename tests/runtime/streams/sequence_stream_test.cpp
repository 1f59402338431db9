// Sequences as streams: into caches of any shape, by any way.
#include "kvmesh/sequence_stream.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "core/bulk_copy.hpp"
#include "core/crc32c.hpp"
#include "runtime/memory/layer_groups.hpp"
#include "runtime/streams/sequence_format.hpp"
#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

TEST(SequenceStream, HasEveryTokenInItsPlace) {
  const Shape shape{.ranks = 2, .page_size = 3};
  const Stream stream = exported(shape, options_of(shape), 300);
  MemorySource source(stream);
  const SequenceHeader header = read_header(source);
  EXPECT_EQ(header.tokens, 300);
  ASSERT_EQ(header.groups.size(), 1u);
  const SequenceHeader::Group& group = header.groups[0];
  EXPECT_EQ(group.layers, (std::vector<std::int32_t>{0, 1, 2}));
  EXPECT_EQ(group.heads, kHeads);
  EXPECT_EQ(group.first, 0);
  ASSERT_EQ(group.planes.size(), 2u);
  EXPECT_EQ(group.planes[1], (SequenceHeader::Plane{"v", Dtype::kFloat32, 6}));
  for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
    std::vector<float> record(record_bytes(group, tokens) / sizeof(float));
    source.read(std::as_writable_bytes(std::span(record)));
    std::uint32_t sum = 0;
    source.read(std::as_writable_bytes(std::span(&sum, 1)));
    check_record(place, crc32c(std::as_bytes(std::span(record)), checksum_before(place)), sum);
    std::size_t at = 0;
    for (int plane = 0; plane < 2; ++plane)
      for (int head = 0; head < kHeads; ++head)
        for (std::int64_t t = place.first; t < place.first + tokens; ++t)
          for (int d = 0; d < (plane == 0 ? kDim : 6); ++d)
            ASSERT_EQ(record[at++], number(t, place.layer, head, d + 50 * plane));
    EXPECT_EQ(at, record.size());
  });
  read_end(source);
}

TEST(SequenceStream, MayHaveAnyLayerThatACacheMayHave) {
  SequenceHeader header{.groups = {{.layers = {0, 70'000, kMostLayers - 1},
                                    .heads = 1,
                                    .planes = {{"k", Dtype::kFloat32, 1}}}},
                        .token_ids = {},
                        .hashes = {}};
  const std::vector<std::byte> bytes = encode(header);
  MemorySource source(bytes);
  EXPECT_EQ(read_header(source), header);
  header.groups[0].layers.push_back(kMostLayers);
  const std::vector<std::byte> one_more = encode(header);
  MemorySource refused(one_more);
  EXPECT_THROW(read_header(refused), StreamError);
}

TEST(SequenceStream, GoesIntoCachesOfAnyShape) {
  const std::vector<Shape> shapes{{1, 1, 4}, {3, 1, 5, Placement::kStriped}, {4, 2, 16}, {2, 2, 1}};
  for (const auto& [kind, dtype] : {std::pair{PageKind::kKv, Dtype::kFloat32},
                                    {PageKind::kKv, Dtype::kFloat8E4M3},
                                    {PageKind::kLatent, Dtype::kBFloat16}}) {
    for (const std::int64_t tokens : {0, 1, 300}) {
      const Stream stream = exported(shapes[0], options_of(shapes[0], kind, dtype), tokens);
      MemorySource source(stream);
      EXPECT_EQ(inspect_sequence(source).tokens, tokens);
      for (const Shape& shape : shapes) {
        EXPECT_EQ(exported(shape, options_of(shape, kind, dtype), tokens), stream);
        EXPECT_EQ(reexported(shape, options_of(shape, kind, dtype), stream), stream);
      }
    }
  }
}

TEST(SequenceStream, HasTheScalesThatNoPlaneHolds) {
  const auto with = [](const Shape& shape, const KvScales& scales, PageKind kind = PageKind::kKv) {
    CacheOptions options = options_of(shape, kind, Dtype::kFloat8E4M3);
    options.scales = scales;
    options.groups = {{.layers = {2}, .dtype = Dtype::kBFloat16}};
    return options;
  };
  const KvScales heads{
      .kind = ScaleKind::kPerHead, .k_heads = {0.02f, 0.05f}, .v_heads = {0.04f, 0.5f}};
  const KvScales numbers{.kind = ScaleKind::kPerTensor, .k = 0.02f, .v = 0.05f};
  using Scales = std::vector<float>;
  const auto expect = [&](const CacheOptions& options, const Scales& k, const Scales& v) {
    const Stream stream = exported({}, options, 300);
    MemorySource source(stream);
    const SequenceHeader header = inspect_sequence(source);
    EXPECT_EQ(header.groups[0].k_scales, k);
    EXPECT_EQ(header.groups[0].v_scales, v);
    EXPECT_EQ(header.groups[1].k_scales, Scales{});
  };
  const KvScales latent{.kind = ScaleKind::kPerHead, .k_heads = heads.k_heads};
  expect(with({}, heads), heads.k_heads, heads.v_heads);
  expect(with({}, latent, PageKind::kLatent), heads.k_heads, {});
  expect(with({}, numbers), {0.02f}, {0.05f});
  expect(with({}, {}), {}, {});

  const Stream stream = exported({}, with({}, heads), 300);
  for (const Shape& shape : {Shape{3, 1, 5, Placement::kStriped}, Shape{4, 2, 16}}) {
    EXPECT_EQ(exported(shape, with(shape, heads), 300), stream);
    EXPECT_EQ(reexported(shape, with(shape, heads), stream), stream);
  }
  KvScales other = heads;
  other.v_heads[1] = 0.25f;
  EXPECT_EQ(refusal(with({}, heads), stream), std::nullopt);
  EXPECT_EQ(refusal(with({}, other), stream), Reason::kMismatch);
  EXPECT_EQ(refusal(with({}, numbers), stream), Reason::kMismatch);
  EXPECT_EQ(refusal(with({}, {}), stream), Reason::kMismatch);
}

/// Layer 1 has another format, layer 2 a window of 6 tokens.
CacheOptions grouped(const Shape& shape) {
  CacheOptions options = options_of(shape);
  options.groups = {{.layers = {1}, .kv_heads = 4, .k_dim = 4, .dtype = Dtype::kBFloat16},
                    {.layers = {2}, .window = 6}};
  options.groups[0].q_heads = 4;
  return options;
}

/// A group's tokens begin where its window did, in whole pages of the exporter: a stream of one
/// page size is not that of another, but goes into caches of any.
TEST(SequenceStream, HasTheGroupsOfLayers) {
  const Shape from{2, 1, 4};
  const auto grown = [&](const Shape& shape) {
    Stream stream;
    run_on_threads(
        shape.ranks,
        [&](Mesh& mesh) {
          KvCache cache(mesh, grouped(shape));
          const SequenceId sequence = cache.create();
          for (const std::int64_t tokens : {290, 10, 1})
            append_numbers(mesh, cache, sequence, tokens);
          const Stream mine = export_of(mesh, cache, sequence);
          if (mesh.rank().value == 0) stream = mine;
        },
        mesh_of(shape));
    return stream;
  };
  const Stream stream = grown(from);
  MemorySource source(stream);
  const SequenceHeader header = inspect_sequence(source);
  ASSERT_EQ(header.groups.size(), 3u);
  EXPECT_EQ(header.groups[1].layers, std::vector<std::int32_t>{1});
  EXPECT_EQ(header.groups[1].heads, 4);
  EXPECT_EQ(header.groups[1].planes[0], (SequenceHeader::Plane{"k", Dtype::kBFloat16, 4}));
  EXPECT_EQ(header.groups[1].first, 0);
  EXPECT_EQ(header.groups[2].first, 292);  // the last step's query, at 300, sees from 295 on
  for (const Shape& to : {Shape{1, 1, 4}, Shape{4, 2, 4}, Shape{3, 1, 2}}) {
    EXPECT_EQ(reexported(to, grouped(to), stream), stream);
  }
  EXPECT_EQ(refusal(grouped({2, 1, 8}), stream), std::nullopt);
  CacheOptions wider = grouped({2, 1, 4});
  wider.groups[1].window = 20;
  EXPECT_EQ(refusal(wider, stream), Reason::kMismatch);
}

/// A state is a row of the last token, and each rank of a row of the mesh has its own.
TEST(SequenceStream, HasTheStatesOfLayers) {
  const auto with_states = [](const Shape& shape) {
    CacheOptions options = options_of(shape);
    options.prefix.enabled = false;
    options.groups = {{.layers = {0, 2}, .state_bytes = 32}};
    return options;
  };
  const Shape from{3, 1, 4};
  Stream stream;
  run_on_threads(
      from.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, with_states(from));
        const SequenceId other = cache.create(), sequence = cache.create();
        cache.plan({{other, 3}, {sequence, 300}});
        for (const int layer : {0, 2}) {
          const TensorView state = cache.sequence_state(layer, sequence);
          for (int i = 0; i < 8 && !state.empty(); ++i)
            static_cast<float*>(state.data)[i] = number(i, layer, 0, 3);
        }
        const Stream mine = export_of(mesh, cache, sequence);
        if (mesh.rank().value == 0) stream = mine;
      },
      mesh_of(from));
  MemorySource source(stream);
  const SequenceHeader header = inspect_sequence(source);
  EXPECT_EQ(header.groups[1].first, 299);
  EXPECT_EQ(header.groups[1].planes[0], (SequenceHeader::Plane{"state", Dtype::kFloat32, 8}));
  const Shape to{2, 1, 16};
  EXPECT_EQ(reexported(to, with_states(to), stream), stream);
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   KvCache cache(mesh, with_states(to));
                   MemorySource again(stream);
                   const SequenceId sequence =
                       cache.import_sequence(mesh.rank().value == 0 ? &again : nullptr).sequence;
                   for (const int layer : {0, 2}) {
                     const TensorView state = cache.sequence_state(layer, sequence);
                     for (int i = 0; i < 8 && !state.empty(); ++i)
                       EXPECT_EQ(static_cast<float*>(state.data)[i], number(i, layer, 0, 3));
                   }
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
  EXPECT_EQ(refusal(options_of({2, 1, 4}), stream), Reason::kMismatch);
}

/// Has no memory of its own to write to; MemorySink has.
class WrittenSink final : public ByteSink {
 public:
  void expect(std::size_t size_bytes) override { expected = size_bytes; }
  void write(std::span<const std::byte> bytes) override {
    stream.insert(stream.end(), bytes.begin(), bytes.end());
    ++writes;
  }
  Stream stream;
  std::size_t expected = 0;
  int writes = 0;
};
/// Shows nothing; MemorySource shows its bytes.
class ReadSource final : public ByteSource {
 public:
  explicit ReadSource(const Stream& stream) : source_(stream) {}
  void read(std::span<std::byte> bytes) override { source_.read(bytes); }

 private:
  MemorySource source_;
};

/// The options with `threads` threads on each rank.
MeshOptions mesh_of(const Shape& shape, int threads) {
  MeshOptions options = mesh_of(shape);
  options.threads = threads;
  return options;
}

/// Each record is more than one thread takes at a time.
CacheOptions with_long_rows(const Shape& shape) {
  CacheOptions options = options_of(shape);
  options.k_dim = 512;
  options.v_dim = 200;
  return options;
}

/// The streams have more bytes than are copied through caches, and rows that begin anywhere in a
/// line.
TEST(SequenceStream, IsTheSameInMemoryAndByWay) {
  Stream first;
  for (const auto& [shape, threads] :
       {std::pair{Shape{.page_size = 3}, 1},
        {Shape{.page_size = 3}, 3},
        {Shape{.ranks = 2, .page_size = 16}, 1},
        {Shape{.ranks = 2, .page_size = 16}, 2},
        {Shape{.ranks = 2, .head_parallel = 2, .page_size = 100}, 2}}) {
    run_on_threads(
        shape.ranks,
        [&](Mesh& mesh) {
          KvCache cache(mesh, with_long_rows(shape));
          const SequenceId sequence = cache.create();
          append_numbers(mesh, cache, sequence, 301);
          const bool speaks = mesh.rank().value == 0;
          const Stream in_memory = export_of(mesh, cache, sequence);
          EXPECT_EQ(speaks, in_memory.size() > BulkCopy::kCachedBytes);
          if (speaks && first.empty()) first = in_memory;
          EXPECT_TRUE(!speaks || in_memory == first);
          ReadSource read(in_memory);
          MemorySource shown(in_memory);
          for (ByteSource* source : std::initializer_list<ByteSource*>{&read, &shown}) {
            const SequenceId again = cache.import_sequence(speaks ? source : nullptr).sequence;
            WrittenSink written;
            cache.export_sequence(again, speaks ? &written : nullptr);
            EXPECT_TRUE(written.stream == in_memory);
            EXPECT_EQ(written.expected, in_memory.size());
            cache.erase(again);
          }
        },
        mesh_of(shape, threads));
  }
}

/// A wrong byte of any thread's rows, in memory that is shown and in what all ranks get.
TEST(SequenceStream, IsCheckedByAllThreads) {
  for (const int ranks : {1, 2}) {
    const Shape shape{.ranks = ranks, .page_size = 16};
    run_on_threads(
        ranks,
        [&](Mesh& mesh) {
          KvCache cache(mesh, with_long_rows(shape));
          const SequenceId sequence = cache.create();
          append_numbers(mesh, cache, sequence, 256);
          Stream stream = export_of(mesh, cache, sequence);
          const bool speaks = mesh.rank().value == 0;
          for (int part = 1; part < 40; ++part) {
            std::byte none{};
            std::byte& wrong =
                speaks ? stream[stream.size() * static_cast<std::size_t>(part) / 40] : none;
            wrong ^= std::byte{16};
            MemorySource source(stream);
            EXPECT_THROW(cache.import_sequence(speaks ? &source : nullptr), StreamError) << part;
            wrong ^= std::byte{16};
          }
          MemorySource source(stream);
          EXPECT_NO_THROW(cache.import_sequence(speaks ? &source : nullptr));
        },
        mesh_of(shape, 3));
  }
}

TEST(SequenceStream, IsWrittenAMegabyteAtATime) {
  Mesh mesh(make_single_communicator(), mesh_of({}, 1));
  const auto writes = [&](const CacheOptions& options) {
    KvCache cache(mesh, options);
    const SequenceId sequence = cache.create();
    append_numbers(mesh, cache, sequence, 301);
    WrittenSink sink;
    cache.export_sequence(sequence, &sink);
    return sink.writes;
  };
  EXPECT_EQ(writes(options_of({})), 1 + 1 + 1) << "all six records between header and end";
  // A layer has 1.46 MB of 256 tokens, and 0.26 MB of 45: of these two layers, and then the third.
  EXPECT_EQ(writes(with_long_rows({})), 1 + 3 + 2 + 1);
}

TEST(SequenceStream, MemoryKeepsWhatWasWritten) {
  MemorySink sink;
  Stream all;
  for (std::size_t size = 0; size < 200; ++size) {
    const Stream piece(size * size, static_cast<std::byte>(size));
    if (size == 100) sink.expect(5);
    if (size % 2 == 0) sink.write(piece);
    if (size % 2 == 1) std::ranges::copy(piece, sink.room(piece.size()).begin());
    all.insert(all.end(), piece.begin(), piece.end());
  }
  EXPECT_TRUE(std::ranges::equal(sink.bytes(), all));
}

TEST(SequenceStream, ItsTokensFindTheSequenceAgain) {
  const Shape from{.page_size = 8}, to{.ranks = 2, .page_size = 4};
  const Stream stream = exported(from, options_of(from), 21, true);
  run_on_threads(to.ranks, [&](Mesh& mesh) {
    KvCache cache(mesh, options_of(to));
    MemorySource source(stream);
    const ImportedSequence imported =
        cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr);
    EXPECT_EQ(imported.header.hashes.size(), 2u);
    EXPECT_EQ(imported.header.hash_page_size, 8);
    PrefixKey key = cache.make_prefix_key();
    key.append(imported.header.token_ids);
    cache.publish(imported.sequence, key);
    cache.erase(imported.sequence);
    EXPECT_EQ(cache.length(cache.create_with_prefix(key)), 20);
  });
}

TEST(SequenceStream, GoesThroughASocket) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const Stream stream = exported({}, options_of({}), 300);
  std::thread writer([&] {
    DescriptorSink(ends[0]).write(stream);
    ::close(ends[0]);
  });
  DescriptorSource source(ends[1]);
  EXPECT_EQ(inspect_sequence(source).tokens, 300);
  std::byte more;
  EXPECT_THROW(source.read({&more, 1}), StreamError);
  writer.join();
  ::close(ends[1]);
}

}  // namespace
}  // namespace kvmesh::test
