// Records that pass through pinned memory in batches, as those of a GPU do: here between CPUs'
// pools and host memory, by moves that are made as late as possible.
#include "runtime/streams/staged_records.hpp"

#include <atomic>
#include <tuple>

#include "tests/runtime/cache/faulty_backend.hpp"
#include "tests/runtime/streams/late_backend.hpp"
#include "tests/runtime/streams/sequence_stream_case.hpp"

namespace kvmesh::test {
namespace {

using RecordKey = std::tuple<std::size_t, std::int64_t, int>;  // group, first token, layer

std::vector<RecordKey> records_of(const std::vector<RecordBatch>& batches) {
  std::vector<RecordKey> records;
  for (const RecordBatch& batch : batches)
    for (std::int64_t first = batch.first; first < batch.first + batch.tokens;
         first += kRecordTokens)
      for (const int layer : batch.layers) records.emplace_back(batch.group, first, layer);
  return records;
}

/// A group that has seen all tokens, one with a window, and one of states.
SequenceHeader header_of_groups(std::int64_t tokens) {
  const std::vector<SequenceHeader::Plane> keys{{"k", Dtype::kFloat32, 8},
                                                {"v", Dtype::kFloat32, 6}};
  return {.tokens = tokens,
          .groups = {{.layers = {0, 2, 3, 5}, .heads = 4, .planes = keys},
                     {.layers = {1}, .heads = 2, .planes = keys, .first = tokens / 2},
                     {.layers = {4, 6},
                      .heads = 2,
                      .planes = {{"state", Dtype::kFloat32, 100'000}},
                      .first = std::max<std::int64_t>(tokens - 1, 0)}},
          .token_ids = {},
          .hashes = {}};
}

TEST(RecordBatches, HaveEachRecordOnceInTheStreamsOrder) {
  for (const std::int64_t tokens : {0, 1, 256, 700, 5000}) {
    const SequenceHeader header = header_of_groups(tokens);
    std::vector<RecordKey> expected;
    for_each_record(header, [&](const RecordPlace& place, std::int64_t) {
      expected.emplace_back(place.group, place.first, place.layer);
    });
    for (const int head_parallel : {1, 2}) {
      for (const std::size_t most : {1u, 100'000u, 300'000u, 1'000'000u, 100'000'000u}) {
        SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(most) + " bytes");
        const std::vector<RecordBatch> batches = batches_of(header, head_parallel, most);
        EXPECT_EQ(records_of(batches), expected);
        for (const RecordBatch& batch : batches) {
          const std::size_t bytes = record_bytes(header.groups[batch.group], batch.tokens);
          EXPECT_EQ(batch.size_bytes,
                    batch.layers.size() * bytes / static_cast<std::size_t>(head_parallel));
          EXPECT_TRUE(batch.size_bytes <= most ||
                      (batch.layers.size() == 1 && batch.tokens <= kRecordTokens));
        }
        if (most == 100'000'000) {
          EXPECT_EQ(batches.size(), tokens > 0 ? 3u : 0u);
        }
      }
    }
  }
}

/// Layer 1 has another format, layer 2 a window, layer 3 states: four groups.
CacheOptions staged_options(const Shape& shape) {
  CacheOptions options = options_of(shape);
  options.layers = 6;
  options.pages_per_rank *= 3;
  options.prefix.enabled = false;
  options.groups = {
      {.layers = {1}, .q_heads = 4, .kv_heads = 4, .k_dim = 4, .dtype = Dtype::kBFloat16},
      {.layers = {2}, .window = 300},
      {.layers = {3}, .state_bytes = 32}};
  return options;
}

// A stream that was exported from staged records goes into pages of the host, and the reverse: the
// same mistake in both ways would not be seen.
TEST(StagedRecords, MakeTheSameStreamsAndPages) {
  for (const Shape& shape :
       {Shape{1, 1, 4}, Shape{3, 1, 5, Placement::kStriped}, Shape{4, 2, 16}}) {
    for (const std::size_t batch_bytes : {1u, 60'000u, 200'000u, 1'000'000u}) {
      SCOPED_TRACE(std::to_string(batch_bytes) + " bytes");
      MeshOptions of_mesh = mesh_of(shape);
      of_mesh.threads = 2;
      run_on_threads(
          shape.ranks,
          [&](Mesh& mesh) {
            KvCache cache(mesh, staged_options(shape));
            const SequenceId sequence = cache.create();
            append_numbers(mesh, cache, sequence, 700);
            const TensorView state = cache.sequence_state(3, sequence);
            for (int i = 0; i < 8 && !state.empty(); ++i)
              static_cast<float*>(state.data)[i] = number(i, 3, mesh.head_rank(), 3);
            const Stream expected = export_of(mesh, cache, sequence);
            LateBackend& late = stage(cache, batch_bytes);
            EXPECT_TRUE(export_of(mesh, cache, sequence) == expected);
            EXPECT_GE(late.stream().moves(), batch_bytes == 1 ? 12 : 3);
            MemorySource source(expected);
            const SequenceId imported =
                cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr).sequence;
            EXPECT_FALSE(late.stream().is_waiting());
            stop_staging(cache);
            EXPECT_TRUE(export_of(mesh, cache, imported) == expected);
          },
          of_mesh);
    }
  }
}

/// A cache on one rank with a sequence of 9 records, each of which is a batch.
class NineBatches : public testing::Test {
 protected:
  static constexpr int kRecords = 9;
  Mesh mesh_{make_single_communicator(), {.threads = 1, .device = DeviceChoice::kCpu}};
  KvCache cache_{mesh_, [] {
                   CacheOptions options = options_of({});
                   options.pages_per_rank *= 2;
                   return options;
                 }()};
  SequenceId sequence_ = cache_.create();
  Stream expected_ = [this] {
    append_numbers(mesh_, cache_, sequence_, 700);
    const Stream stream = export_of(mesh_, cache_, sequence_);
    return stream;
  }();
  LateBackend& late_ = stage(cache_, 1);
};

/// Calls `look` before each write; throws after `room` writes.
class WatchedSink final : public ByteSink {
 public:
  explicit WatchedSink(std::function<void()> look, int room = 100)
      : look_(std::move(look)), room_(room) {}
  void write(std::span<const std::byte> bytes) override {
    look_();
    if (room_-- == 0) throw StreamError(Reason::kIo, "the disk is full");
    stream.insert(stream.end(), bytes.begin(), bytes.end());
  }
  Stream stream;

 private:
  std::function<void()> look_;
  int room_;
};

TEST_F(NineBatches, TheNextMovesWhileOneIsWritten) {
  std::vector<int> moves;
  std::vector<bool> waiting;
  WatchedSink sink([&] {
    if (!late_.has_stream()) return;  // the header
    moves.push_back(late_.stream().moves());
    waiting.push_back(late_.stream().is_waiting());
  });
  cache_.export_sequence(sequence_, &sink);
  EXPECT_TRUE(sink.stream == expected_);
  // The last two are of the last record and of the end mark.
  EXPECT_EQ(moves, (std::vector<int>{2, 3, 4, 5, 6, 7, 8, 9, 9, 9}));
  EXPECT_EQ(waiting, (std::vector<bool>{1, 1, 1, 1, 1, 1, 1, 1, 0, 0}));
}

TEST_F(NineBatches, OneMovesWhileTheNextIsRead) {
  class Watched final : public ByteSource {
   public:
    Watched(const Stream& stream, LateBackend& late) : source_(stream), late_(late) {}
    void read(std::span<std::byte> bytes) override {
      source_.read(bytes);
      if (!late_.has_stream()) return;
      const LateStream& stream = late_.stream();
      EXPECT_EQ(stream.is_waiting(), stream.moves() > 0 && stream.moves() < kRecords);
      if (seen.empty() || seen.back() != stream.moves()) seen.push_back(stream.moves());
    }
    std::vector<int> seen;

   private:
    MemorySource source_;
    LateBackend& late_;
  };
  cache_.erase(sequence_);
  Watched source(expected_, late_);
  const SequenceId imported = cache_.import_sequence(&source).sequence;
  EXPECT_EQ(source.seen, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  stop_staging(cache_);
  EXPECT_TRUE(export_of(mesh_, cache_, imported) == expected_);
}

TEST_F(NineBatches, NoneMovesAfterAFailure) {
  WatchedSink full([] {}, 3);
  EXPECT_THROW(cache_.export_sequence(sequence_, &full), StreamError);
  EXPECT_EQ(late_.stream().moves(), 4);
  EXPECT_FALSE(late_.stream().is_waiting());
  Stream bad = expected_;
  bad[bad.size() / 2] ^= std::byte{1};
  MemorySource source(bad);
  EXPECT_THROW(cache_.import_sequence(&source), StreamError);
  EXPECT_EQ(late_.stream().moves(), 8) << "the fifth record is bad";
  EXPECT_FALSE(late_.stream().is_waiting());
  EXPECT_EQ(cache_.allocator().sequences(), 1);
  EXPECT_TRUE(export_of(mesh_, cache_, sequence_) == expected_);
}

TEST_F(NineBatches, TheirMemoryIsKept) {
  EXPECT_TRUE(export_of(mesh_, cache_, sequence_) == expected_);
  const auto& buffers = inside(cache_).staging.buffers;
  const std::byte* const first = buffers[0].data();
  const std::byte* const second = buffers[1].data();
  EXPECT_NE(first, second);
  EXPECT_GE(buffers[0].size_bytes(), 256u * kHeads * (kDim + 6) * 4);
  EXPECT_TRUE(export_of(mesh_, cache_, sequence_) == expected_);
  EXPECT_EQ(buffers[0].data(), first);
  EXPECT_EQ(buffers[1].data(), second);
  EXPECT_EQ(late_.streams(), 1);
}

TEST_F(NineBatches, AMoveThatDoesNotEndIsAnErrorAtTheDeadline) {
  EXPECT_TRUE(export_of(mesh_, cache_, sequence_) == expected_);
  mesh_.world().set_deadline(std::chrono::milliseconds(50));
  late_.stream().stick(true);
  EXPECT_THROW(export_of(mesh_, cache_, sequence_), StreamError);
  EXPECT_TRUE(late_.stream().is_waiting());
  EXPECT_THROW(export_of(mesh_, cache_, sequence_), StreamError) << "its buffer is in use";
  late_.stream().stick(false);
  EXPECT_TRUE(export_of(mesh_, cache_, sequence_) == expected_);
}

TEST_F(NineBatches, AnImportWritesNoBufferThatAMoveMayStillRead) {
  EXPECT_TRUE(export_of(mesh_, cache_, sequence_) == expected_);
  mesh_.world().set_deadline(std::chrono::milliseconds(50));
  late_.stream().stick(true);
  const auto import_fails = [&](const Stream& stream) {
    MemorySource source(stream);
    EXPECT_THROW(cache_.import_sequence(&source), StreamError);
    const HostMemory& buffer = inside(cache_).staging.buffers[0];
    return Stream(buffer.data(), buffer.data() + buffer.size_bytes());
  };
  const Stream first = import_fails(expected_);
  EXPECT_TRUE(late_.stream().is_waiting());
  EXPECT_TRUE(import_fails(exported({}, options_of({}), 30)) == first);
  late_.stream().stick(false);
  MemorySource source(expected_);
  EXPECT_EQ(cache_.length(cache_.import_sequence(&source).sequence), 700);
}

// The stream reports a failed move by the call behind it.
TEST(StagedRecords, AFailedMoveOfOneRankIsTheErrorOfAll) {
  const Shape shape{.ranks = 3};
  const Stream good = exported(shape, options_of(shape), 300);
  run_on_threads(
      shape.ranks,
      [&](Mesh& mesh) {
        KvCache cache(mesh, options_of(shape));
        const SequenceId sequence = cache.create();
        append_numbers(mesh, cache, sequence, 300);
        std::atomic<bool> fails = mesh.rank().value == 1;
        auto& state = inside(cache);
        state.groups[0].backend =
            std::make_unique<FaultyCopies>(std::move(state.groups[0].backend), fails);
        state.staging.batch_bytes = 1;
        const auto import = [&] {
          MemorySource source(good);
          return cache.import_sequence(mesh.rank().value == 0 ? &source : nullptr).sequence;
        };
        const std::int64_t free = cache.allocator().free_pages();
        EXPECT_THROW(export_of(mesh, cache, sequence), StreamError);
        EXPECT_THROW(import(), StreamError);
        EXPECT_EQ(cache.allocator().free_pages(), free);
        fails = false;
        for (const SequenceId id : {sequence, import()}) {
          const Stream stream = export_of(mesh, cache, id);
          EXPECT_TRUE(mesh.rank().value != 0 || stream == good);
        }
        state.staging = {};  // its stream ends before `fails`
      },
      mesh_of(shape));
}

}  // namespace
}  // namespace kvmesh::test
