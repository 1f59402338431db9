// The errors of streams that are damaged, or do not fit.
#include <algorithm>
#include <cstring>
#include <functional>
#include <random>

#include "core/crc32c.hpp"
#include "runtime/streams/sequence_format.hpp"
#include "tests/runtime/cache/cache_inside.hpp"
#include "tests/runtime/streams/sequence_stream_case.hpp"
#include "tests/support/random.hpp"

namespace kvmesh::test {
namespace {

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
  // Also in the last record, after which the ranks exchange no other, and in the end mark.
  for (const std::size_t at :
       {std::size_t{20}, good_.size() / 2, good_.size() - 30, good_.size() - 1}) {
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

TEST_F(BadStream, IsRefusedIfItDoesNotFitTheCache) {
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

/// A page of states has one row, so further rows of a stream would be written past it.
TEST_F(BadStream, WithAStateAtAnotherTokenDoesNotFit) {
  CacheOptions options = options_of({});
  options.prefix.enabled = false;
  options.groups = {{.layers = {2}, .state_bytes = 32}};
  const Stream good = exported({}, options, 300);
  EXPECT_EQ(refusal(options, good), std::nullopt);
  MemorySource source(good);
  SequenceHeader header = read_header(source);
  const auto begin = static_cast<std::ptrdiff_t>(encode(header).size());
  for (const std::int64_t first : {0, 298, 300}) {
    header.groups[1].first = first;
    Stream bad = encode(header);
    bad.insert(bad.end(), good.begin() + begin, good.end());
    EXPECT_EQ(refusal(options, bad), Reason::kMismatch) << first;
  }
}

TEST_F(BadStream, WithAnotherNumberOfScalesThanOfHeadsIsCorrupt) {
  MemorySource source(good_);
  const SequenceHeader good = read_header(source);
  const auto read_with = [&](std::size_t k, std::size_t v) {
    SequenceHeader header = good;
    header.groups[0].k_scales.assign(k, 0.5f);
    header.groups[0].v_scales.assign(v, 0.5f);
    const Stream bytes = encode(header);
    MemorySource from(bytes);
    return read_header(from) == header;
  };
  EXPECT_TRUE(read_with(0, 1));
  EXPECT_TRUE(read_with(kHeads, 0));
  EXPECT_THROW(read_with(kHeads + 1, 0), StreamError);
  EXPECT_THROW(read_with(1, kHeads + 7), StreamError);
}

/// Returns the header's bytes with `more` bytes at its end, and a size and a checksum that fit.
Stream lengthened(const SequenceHeader& header, std::uint32_t more) {
  constexpr std::size_t kSizeAt = 12, kSum = 4;
  Stream bytes = encode(header);
  bytes.resize(bytes.size() - kSum + more);
  std::uint32_t size = 0;
  std::memcpy(&size, bytes.data() + kSizeAt, sizeof size);
  size += more;
  std::memcpy(bytes.data() + kSizeAt, &size, sizeof size);
  const std::uint32_t sum = crc32c(bytes);
  const auto raw = std::as_bytes(std::span(&sum, 1));
  bytes.insert(bytes.end(), raw.begin(), raw.end());
  return bytes;
}

/// A program that publishes the imported pages trusts the ids and hashes to be those of the tokens.
TEST_F(BadStream, WithListsThatDoNotFitItsTokensIsCorrupt) {
  MemorySource source(good_);
  const SequenceHeader good = read_header(source);
  const auto reads = [](const Stream& bytes) {
    MemorySource from(bytes);
    return read_header(from).tokens == 260;
  };
  const auto reads_with = [&](const std::function<void(SequenceHeader&)>& change) {
    SequenceHeader header = good;
    change(header);
    return reads(encode(header));
  };
  EXPECT_TRUE(reads_with([](SequenceHeader&) {}));
  EXPECT_TRUE(reads_with([](SequenceHeader& it) { it.hashes.pop_back(); }));
  EXPECT_THROW(reads_with([](SequenceHeader& it) { it.hashes.emplace_back(); }), StreamError);
  EXPECT_THROW(reads_with([](SequenceHeader& it) { it.token_ids[3] = -1; }), StreamError);
  for (const std::int32_t change : {-1, 1}) {
    EXPECT_THROW(reads_with([&](SequenceHeader& it) {
                   it.token_ids.resize(static_cast<std::size_t>(260 + change));
                   it.hashes.clear();
                 }),
                 StreamError);
  }
  EXPECT_TRUE(reads(lengthened(good, 0)));
  EXPECT_THROW(reads(lengthened(good, 1)), StreamError);
}

/// Records of one length, of the same layer, whose checksums are right.
TEST_F(BadStream, WithRecordsOfOtherTokensInTheirPlaceIsCorrupt) {
  const Stream good = exported({}, options_of({}), 512);
  MemorySource source(good);
  const std::size_t header = encode(read_header(source)).size();
  const std::size_t record = 256 * kHeads * (kDim + 6) * 4 + 4;
  const auto of_layer_0 = [&](Stream& stream, std::size_t part) {
    return stream.begin() + static_cast<std::ptrdiff_t>(header + part * 3 * record);
  };
  Stream bad = good;
  std::swap_ranges(of_layer_0(bad, 0), of_layer_0(bad, 0) + static_cast<std::ptrdiff_t>(record),
                   of_layer_0(bad, 1));
  EXPECT_EQ(refusal(options_, good), std::nullopt);
  EXPECT_EQ(refusal(options_, bad), Reason::kCorrupt);
}

/// Rank 0 cannot see that the rows of another rank are wrong, and the stream looks whole but for
/// its end.
TEST_F(BadStream, OfRowsThatARankCouldNotReadHasNoEnd) {
  class Unreadable final : public OtherBackend {
   public:
    using OtherBackend::OtherBackend;
    void wait_idle() override { throw Error("injected"); }
  };
  run_on_threads(2, [&](Mesh& mesh) {
    KvCache cache(mesh, options_);
    const SequenceId sequence = cache.create();
    append_numbers(mesh, cache, sequence, 400);
    std::unique_ptr<Backend>& backend = inside(cache).groups[0].backend;
    if (mesh.rank().value == 1) backend = std::make_unique<Unreadable>(std::move(backend));
    MemorySink sink;
    EXPECT_THROW(cache.export_sequence(sequence, mesh.rank().value == 0 ? &sink : nullptr), Error);
    if (mesh.rank().value != 0) return;
    MemorySource written(sink.bytes());
    try {
      inspect_sequence(written);
      ADD_FAILURE() << "it is a whole stream";
    } catch (const StreamError& error) {
      EXPECT_EQ(error.reason(), Reason::kTruncated);
    }
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

}  // namespace
}  // namespace kvmesh::test
