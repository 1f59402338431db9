// Sequences as streams: into caches of any shape, by any way, and what becomes of bad ones.
#include "kvmesh/sequence_stream.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <thread>

#include "core/crc32c.hpp"
#include "runtime/memory/sequence_format.hpp"
#include "tests/runtime/cache_fixture.hpp"
#include "tests/support/random.hpp"
#include "tests/support/ranks.hpp"

namespace kvmesh::test {
namespace {

using Reason = StreamError::Reason;
using Stream = std::vector<std::byte>;

constexpr int kHeads = 2, kDim = 8;

struct Shape {
  int ranks = 1, head_parallel = 1, page_size = 4;
  Placement placement = Placement::kBalanced;
};

CacheOptions options_of(const Shape& shape, PageKind kind = PageKind::kKv,
                        Dtype dtype = Dtype::kFloat32) {
  return {.layers = 3,
          .q_heads = 2 * kHeads,
          .kv_heads = kHeads,
          .k_dim = kDim,
          .v_dim = 6,
          .page_size = shape.page_size,
          .pages_per_rank = 1200 / shape.page_size,
          .dtype = dtype,
          .page_kind = kind,
          .placement = shape.placement,
          .home_threshold_tokens = 2 * shape.page_size,
          .prefix = {.enabled = true}};
}

MeshOptions mesh_of(const Shape& shape) {
  return {.head_parallel = shape.head_parallel,
          .threads = 1,
          .device = DeviceChoice::kCpu,
          .membership = rotated_membership(shape.ranks / shape.head_parallel)};
}

float number(std::int64_t token, int layer, std::int64_t head, std::int64_t d) {
  return static_cast<float>((token * 31 + layer * 17 + head * 13 + d * 5) % 97) / 8 - 6;
}

/// Appends `tokens` tokens, whose numbers say which they are, in every layer with keys.
void append_numbers(Mesh& mesh, KvCache& cache, SequenceId sequence, std::int64_t tokens) {
  const std::int64_t begin = cache.length(sequence);
  StepPlan plan = cache.plan({{sequence, tokens, 0}});
  for (int layer = 0; layer < cache.options().layers; ++layer) {
    const CacheOptions o = cache.group_options(cache.group_of(layer));
    if (o.state_bytes > 0) continue;
    const Share heads = share_of(o.kv_heads, mesh.head_rank(), mesh.head_parallel());
    std::vector<float> k, v;
    for (std::int64_t t = begin; t < begin + tokens; ++t) {
      for (std::int64_t head = heads.begin; head < heads.begin + heads.size(); ++head) {
        for (int d = 0; d < o.k_dim; ++d) k.push_back(number(t, layer, head, d));
        for (int d = 0; d < o.v_dim; ++d) v.push_back(number(t, layer, head, d + 50));
      }
    }
    const bool latent = o.page_kind == PageKind::kLatent;
    plan.append(layer, tensor(k.data(), {tokens, heads.size(), o.k_dim}),
                latent ? ConstTensorView{} : tensor(v.data(), {tokens, heads.size(), o.v_dim}));
  }
}

Stream export_of(Mesh& mesh, KvCache& cache, SequenceId sequence, const PrefixKey* key = nullptr) {
  MemorySink sink;
  cache.export_sequence(sequence, mesh.rank().value == 0 ? &sink : nullptr, key);
  return sink.bytes();
}

/// A stream of a sequence with numbers, exported by ranks of this shape.
Stream exported(const Shape& shape, const CacheOptions& options, std::int64_t tokens,
                bool with_key = false) {
  Stream stream;
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        const SequenceId other = cache.create(), sequence = cache.create();
        cache.reserve(other, 9);
        if (tokens > 0) append_numbers(mesh, cache, sequence, tokens);
        PrefixKey key = cache.make_prefix_key();
        std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
        std::iota(ids.begin(), ids.end(), 5);
        key.append(ids);
        const Stream mine = export_of(mesh, cache, sequence, with_key ? &key : nullptr);
        if (mesh.rank().value == 0) stream = mine;
      },
      mesh_of(shape));
  return stream;
}

/// Imports on ranks of this shape, and exports again.
Stream reexported(const Shape& shape, const CacheOptions& options, const Stream& stream) {
  Stream again;
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options);
        cache.reserve(cache.create(), 5);
        MemorySource source(stream);
        const ImportedSequence imported =
            cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr);
        EXPECT_EQ(cache.length(imported.sequence), imported.header.tokens);
        cache.allocator().verify_integrity();
        cache.check_replicas();
        const Stream mine = export_of(mesh, cache, imported.sequence);
        if (mesh.rank().value == 0) again = mine;
      },
      mesh_of(shape));
  return again;
}

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
    read_record(source, place, std::as_writable_bytes(std::span(record)));
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

/// Imports on 2 ranks beside a sequence that stays; expects an error and nothing else.
std::optional<Reason> refusal(const CacheOptions& options, const Stream& stream) {
  std::optional<Reason> reason;
  run_on_threads(2,
                 [&](Mesh& mesh) {
                   KvCache cache(mesh, options);
                   const SequenceId stays = cache.create();
                   append_numbers(mesh, cache, stays, 9);
                   const Stream before = export_of(mesh, cache, stays);
                   const std::int64_t free = cache.allocator().free_pages();
                   MemorySource source(stream);
                   std::optional<Reason> mine;
                   try {
                     cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr);
                   } catch (const StreamError& error) {
                     mine = error.reason();
                   }
                   EXPECT_EQ(cache.allocator().sequences(), mine ? 1 : 2);
                   if (mine) {
                     EXPECT_EQ(cache.allocator().free_pages(), free);
                   }
                   EXPECT_EQ(export_of(mesh, cache, stays), before);
                   const auto all =
                       all_gather_value(mesh.world(), mine ? static_cast<int>(*mine) : -1);
                   EXPECT_EQ(all[0], all[1]);
                   if (mesh.rank().value == 0) reason = mine;
                 },
                 {.threads = 1, .device = DeviceChoice::kCpu});
  return reason;
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

class BadStream : public ::testing::Test {
 protected:
  CacheOptions options_ = options_of({.ranks = 2});
  Stream good_ = exported({}, options_of({}), 260, true);
};

TEST_F(BadStream, LeavesNothingBehind) {
  EXPECT_EQ(refusal(options_, good_), std::nullopt);
  Stream bad = good_;
  bad[3] = std::byte{'x'};
  EXPECT_EQ(refusal(options_, bad), Reason::kForeign);
  bad = good_;
  bad[8] = std::byte{1};  // the version
  EXPECT_EQ(refusal(options_, bad), Reason::kForeign);
  for (const std::size_t at : {std::size_t{20}, good_.size() / 2, good_.size() - 1}) {
    bad = good_;
    bad[at] ^= std::byte{1};
    EXPECT_EQ(refusal(options_, bad), Reason::kCorrupt) << at;
  }
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{10}, std::size_t{40}, good_.size() / 2, good_.size() - 1}) {
    bad = good_;
    bad.resize(size);
    EXPECT_EQ(refusal(options_, bad), Reason::kTruncated) << size;
  }
  // The same bytes in another order: two layers of the same tokens exchanged.
  bad = good_;
  const std::size_t record = 256 * kHeads * (kDim + 6) * 4 + 4;
  MemorySource source(good_);
  const std::size_t header = encode(read_header(source)).size();
  std::swap_ranges(bad.begin() + static_cast<std::ptrdiff_t>(header),
                   bad.begin() + static_cast<std::ptrdiff_t>(header + record),
                   bad.begin() + static_cast<std::ptrdiff_t>(header + record));
  EXPECT_EQ(refusal(options_, bad), Reason::kCorrupt);
}

TEST_F(BadStream, ThatDoesNotFitIsNamed) {
  CacheOptions other = options_;
  other.layers = 4;
  EXPECT_EQ(refusal(other, good_), Reason::kMismatch);
  other = options_;
  other.kv_heads = 4;
  EXPECT_EQ(refusal(other, good_), Reason::kMismatch);
  other = options_;
  other.dtype = Dtype::kBFloat16;
  EXPECT_EQ(refusal(other, good_), Reason::kMismatch);
  other = options_;
  other.groups = {{.layers = {2}}};
  EXPECT_EQ(refusal(other, good_), Reason::kMismatch);
  run_on_threads(2, [&](Mesh& mesh) {
    CacheOptions small = options_;
    small.pages_per_rank = 20;
    KvCache cache(mesh, small);
    MemorySource source(good_);
    EXPECT_THROW(cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr), OutOfPages);
    EXPECT_EQ(cache.allocator().sequences(), 0);
    EXPECT_EQ(cache.allocator().free_pages(), 40);
  });
}

/// Header and end are small and hold every number that a program trusts; so most changes go there,
/// half of them with a checksum that fits.
TEST_F(BadStream, ChangedAtRandomIsAnErrorOrTheSame) {
  const std::uint64_t seed = seed_or(17);
  SCOPED_TRACE("KVMESH_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  Mesh mesh(make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu});
  KvCache cache(mesh, options_of({}));
  MemorySource whole(good_);
  const std::size_t header = encode(read_header(whole)).size();
  std::int64_t errors = 0;
  for (int round = 0; round < 400; ++round) {
    Stream stream = good_;
    for (std::uint64_t changes = 1 + random() % 3; changes > 0; --changes) {
      const std::size_t range =
          random() % 4 == 0 ? stream.size() : std::min<std::size_t>(header, 140);
      stream[random() % range] = static_cast<std::byte>(random() % 3 ? random() : 255);
    }
    if (random() % 2 == 0) {
      const std::uint32_t sum = crc32c(std::span(stream).first(header - 4));
      std::memcpy(stream.data() + header - 4, &sum, sizeof sum);
    }
    if (random() % 8 == 0) stream.resize(random() % stream.size());
    MemorySource source(stream), same(stream);
    try {
      cache.erase(cache.import_sequence(&source).sequence);
      inspect_sequence(same);
    } catch (const StreamError&) {
      ++errors;
    } catch (const OutOfPages&) {
      ++errors;
    }
    ASSERT_EQ(cache.allocator().sequences(), 0);
  }
  EXPECT_GT(errors, 350);
  cache.allocator().verify_integrity();
}

TEST_F(BadStream, OfASinkThatFailsEndsOnAllRanks) {
  class Full final : public ByteSink {
   public:
    void write(std::span<const std::byte> bytes) override {
      room_ -= std::ssize(bytes);
      if (room_ < 0) throw StreamError(Reason::kIo, "the disk is full");
    }

   private:
    std::int64_t room_ = 20'000;
  };
  run_on_threads(3, [&](Mesh& mesh) {
    KvCache cache(mesh, options_of({.ranks = 3}));
    const SequenceId sequence = cache.create();
    append_numbers(mesh, cache, sequence, 400);
    Full full;
    try {
      cache.export_sequence(sequence, mesh.rank().value == 0 ? &full : nullptr);
      ADD_FAILURE() << "it was written";
    } catch (const StreamError& error) {
      EXPECT_STREQ(error.what(), "the disk is full");
    }
    EXPECT_FALSE(mesh.rank().value == 0 && export_of(mesh, cache, sequence).empty());
    if (mesh.rank().value != 0) export_of(mesh, cache, sequence);
  });
}

TEST(SequenceStream, FilesAppearWhenTheyAreComplete) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("kvmesh_stream_" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  const std::string path = folder / "sequence";
  const Stream stream = exported({}, options_of({}), 40);
  {
    FileSink sink(path);
    sink.write(stream);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  {
    FileSink sink(path);
    sink.write(stream);
    sink.finish();
  }
  FileSource source(path);
  EXPECT_EQ(inspect_sequence(source).tokens, 40);
  EXPECT_THROW(inspect_sequence(source), StreamError);  // at its end
  EXPECT_THROW(FileSource("/nowhere/sequence"), StreamError);
  EXPECT_THROW(FileSink("/nowhere/sequence"), StreamError);
  std::filesystem::remove_all(folder);
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
