// Sequences that leave a cache, and that come. World rank 0 has the stream.
//
//   export   each rank packs its heads of its tokens of a record, rank 0 puts them in place
//   import   rank 0 reads a record and sends it to all, each rank takes its heads of its tokens
#include <numeric>
#include <optional>

#include "core/check.hpp"
#include "runtime/cache_state.hpp"
#include "runtime/memory/page_mover.hpp"
#include "runtime/memory/sequence_format.hpp"

namespace kvmesh {
namespace {

using Reason = StreamError::Reason;

SequenceHeader header_of(const KvCache& cache, SequenceId sequence, const PrefixKey* key) {
  const CacheOptions& options = cache.options();
  if (cache.groups() > 1)
    throw Unsupported("sequence stream: a cache of several layer groups is not exported yet");
  SequenceHeader header{.tokens = cache.length(sequence),
                        .layers = options.layers,
                        .heads = options.kv_heads,
                        .planes = {},
                        .token_ids = {},
                        .hashes = {}};
  for (const PagePlane& plane : cache.page_format().planes)
    header.planes.push_back({std::string(plane.name), plane.dtype, plane.elements});
  if (options.scales.kind == ScaleKind::kPerTensor) {
    header.k_scale = options.scales.k;
    header.v_scale = options.scales.v;
  }
  if (key == nullptr) return header;
  require(std::ssize(key->tokens()) >= header.tokens, "export: the key has {} tokens of {}",
          key->tokens().size(), header.tokens);
  const auto tokens = static_cast<std::size_t>(header.tokens);
  header.hash = key->rules().hash;
  header.hash_page_size = key->rules().page_size;
  const auto hashes = tokens / static_cast<std::size_t>(header.hash_page_size);
  header.token_ids.assign(key->tokens().begin(), key->tokens().begin() + header.tokens);
  header.hashes.assign(key->hashes().begin(),
                       key->hashes().begin() + static_cast<std::ptrdiff_t>(hashes));
  return header;
}

void check_fits(const SequenceHeader& header, const SequenceHeader& cache) {
  const auto check = [](const char* what, const auto& stream, const auto& mine) {
    if (stream == mine) return;
    throw StreamError(Reason::kMismatch, fmt::format("import: the stream has {} {}, the cache {}",
                                                     what, stream, mine));
  };
  check("layers:", header.layers, cache.layers);
  check("kv heads:", header.heads, cache.heads);
  check("planes:", header.planes.size(), cache.planes.size());
  for (std::size_t i = 0; i < cache.planes.size(); ++i) {
    const auto text = [](const SequenceHeader::Plane& plane) {
      return fmt::format("{} of {} {}", plane.name, plane.elements, name(plane.dtype));
    };
    check("a plane", text(header.planes[i]), text(cache.planes[i]));
  }
  check("a scale of keys", header.k_scale, cache.k_scale);
  check("a scale of values", header.v_scale, cache.v_scale);
}

/// The tokens of a record whose pages are of one page rank. The record is the other end.
std::vector<PageMove> moves_of(std::span<const PageId> pages, int page_size, PageRank pool,
                               std::int64_t first, std::int64_t tokens) {
  std::vector<PageMove> moves;
  for (std::int64_t at = first; at < first + tokens;) {
    const std::int64_t logical = at / page_size, token = at % page_size;
    const std::int64_t count = std::min(page_size - token, first + tokens - at);
    const PageId page = pages[static_cast<std::size_t>(logical)];
    require(page.valid(), "export: the sequence has no page for token {} any more", at);
    if (page.rank() == pool) {
      moves.push_back({.source = page.index(),
                       .destination = page.index(),
                       .source_token = static_cast<int>(token),
                       .destination_token = static_cast<int>(at - first),
                       .tokens = static_cast<int>(count)});
    }
    at += count;
  }
  return moves;
}

/// The moves into the pools: record and page exchanged.
std::vector<PageMove> turned(std::vector<PageMove> moves) {
  for (PageMove& move : moves) std::swap(move.source_token, move.destination_token);
  return moves;
}

/// A rank's heads in a record. `token` is that of the record's end.
MoveEnd record_end(const SequenceHeader& header, std::byte* record, std::int64_t tokens,
                   std::int64_t first_head, std::int32_t PageMove::*token) {
  return {.places = [=, &header](int, std::size_t plane, const PageMove& move, std::size_t width) {
    const std::size_t row = width / static_cast<std::size_t>(move.tokens);
    const auto at = static_cast<std::size_t>(first_head * tokens + move.*token);
    return RowPlace{record + plane_offset(header, tokens, plane) + at * row,
                    static_cast<std::size_t>(tokens) * row};
  }};
}

std::size_t bytes_of(const PageMover& mover, std::span<const int> layers,
                     std::span<const PageMove> moves) {
  return std::accumulate(moves.begin(), moves.end(), std::size_t{0},
                         [&](std::size_t sum, const PageMove& move) {
                           return sum + mover.bytes(layers, move.tokens);
                         });
}

/// What rank 0 met, for all ranks: nothing, or an error that each throws.
class Outcome {
 public:
  /// Runs `work` on rank 0, unless it has failed before.
  template <class Work>
  void run(Communicator& world, const Work& work) {
    if (world.rank().value != 0 || error_) return;
    try {
      work();
    } catch (const StreamError& error) {
      error_ = error;
    } catch (const std::exception& error) {
      error_ = StreamError(Reason::kIo, error.what());
    }
  }
  bool failed() const { return error_.has_value(); }

  /// Throws on all ranks if rank 0 has failed. Collective.
  void agree(Communicator& world) const {
    struct Wire {
      std::uint32_t failed = 0, reason = 0, size = 0;
    } wire;
    if (error_) {
      wire = {1, static_cast<std::uint32_t>(error_->reason()),
              static_cast<std::uint32_t>(std::string_view(error_->what()).size())};
    }
    broadcast(world, Rank{0}, std::as_writable_bytes(std::span(&wire, 1)), "sequence stream");
    if (wire.failed == 0) return;
    std::string what = error_ ? error_->what() : std::string(wire.size, ' ');
    broadcast(world, Rank{0}, std::as_writable_bytes(std::span(what)), "sequence stream: error");
    throw StreamError(static_cast<Reason>(wire.reason), what);
  }

 private:
  std::optional<StreamError> error_;
};

/// Reads the header on rank 0 and sends it to all. Collective.
SequenceHeader agreed_header(Communicator& world, ByteSource* source) {
  Outcome outcome;
  std::vector<std::byte> bytes;
  outcome.run(world, [&] { bytes = encode(read_header(*source)); });
  outcome.agree(world);
  std::uint64_t size = bytes.size();
  broadcast(world, Rank{0}, std::as_writable_bytes(std::span(&size, 1)), "import: header size");
  bytes.resize(size);
  broadcast(world, Rank{0}, bytes, "import: header");
  MemorySource copy(bytes);
  return read_header(copy);
}

/// The parts of a cache that records move between.
struct CacheParts {
  Mesh& mesh;
  const PageAllocator& allocator;
  Backend& backend;
};

/// One record at a time, between the pools and rank 0's stream.
class RecordTransfer {
 public:
  RecordTransfer(const CacheParts& cache, const PoolStorage& pools, const SequenceHeader& header,
                 SequenceId sequence)
      : cache_(cache),
        header_(header),
        sequence_(sequence),
        mover_(pools),
        device_(cache.backend.device_moves()) {}

  void send(const RecordPlace& place, std::int64_t tokens, ByteSink* sink, Outcome& outcome) {
    Communicator& world = cache_.mesh.world();
    const std::span<const int> layer(&place.layer, 1);
    const bool collects = world.rank().value == 0;
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    std::vector<std::vector<std::byte>> packed(static_cast<std::size_t>(world.size()));
    std::vector<std::vector<PageMove>> moves(packed.size());
    for (int rank = 0; rank < world.size(); ++rank) {
      if (!collects && rank != world.rank().value) continue;
      const auto at = static_cast<std::size_t>(rank);
      moves[at] = moves_on(rank, place, tokens);
      packed[at].resize(bytes_of(mover_, layer, moves[at]));
      if (packed[at].empty()) continue;
      if (rank == world.rank().value)
        mover_.move(layer, moves[at], mover_.my_pools(), {.packed = packed[at].data()}, device_);
      if (collects && rank != 0) incoming.push_back({Rank{rank}, packed[at]});
      if (!collects) outgoing.push_back({Rank{0}, packed[at]});
    }
    world.exchange(outgoing, incoming, "export");
    if (!collects) return;
    record_.resize(record_bytes(header_, tokens));
    for (int rank = 0; rank < world.size(); ++rank) {
      const auto at = static_cast<std::size_t>(rank);
      mover_.move(layer, moves[at], {.packed = packed[at].data()},
                  record_end(header_, record_.data(), tokens, first_head(rank),
                             &PageMove::destination_token),
                  device_);
    }
    outcome.run(world, [&] { write_record(*sink, place, record_); });
  }

  /// Returns whether rank 0 could read the record.
  bool receive(const RecordPlace& place, std::int64_t tokens, ByteSource* source,
               Outcome& outcome) {
    Communicator& world = cache_.mesh.world();
    record_.resize(record_bytes(header_, tokens) + 1);  // and whether it is good
    const std::span<std::byte> content = std::span(record_).first(record_.size() - 1);
    outcome.run(world, [&] { read_record(*source, place, content); });
    record_.back() = std::byte{!outcome.failed()};
    broadcast(world, Rank{0}, record_, "import");
    if (record_.back() == std::byte{0}) return false;
    const int me = world.rank().value;
    const std::span<const int> layer(&place.layer, 1);
    mover_.move(
        layer, turned(moves_on(me, place, tokens)),
        record_end(header_, record_.data(), tokens, first_head(me), &PageMove::source_token),
        mover_.my_pools(), device_);
    return true;
  }

 private:
  std::vector<PageMove> moves_on(int rank, const RecordPlace& place, std::int64_t tokens) const {
    const Rank kv_rank{rank / cache_.mesh.head_parallel()};
    return moves_of(cache_.allocator.pages(sequence_), cache_.allocator.options().page_size,
                    cache_.mesh.membership().page_rank(kv_rank), place.first, tokens);
  }
  std::int64_t first_head(int rank) const {
    const int heads = cache_.mesh.head_parallel();
    return share_of(header_.heads, rank % heads, heads).begin;
  }

  CacheParts cache_;
  const SequenceHeader& header_;
  SequenceId sequence_;
  PageMover mover_;
  DeviceMoves device_;
  std::vector<std::byte> record_;
};

}  // namespace

void KvCache::export_sequence(SequenceId sequence, ByteSink* sink, const PrefixKey* key) {
  const SequenceHeader header = header_of(*this, sequence, key);
  Communicator& world = state().mesh.world();
  Outcome outcome;
  outcome.run(world, [&] {
    require(sink != nullptr, "export: rank 0 has no sink");
    sink->write(encode(header));
  });
  state().wait_for_tiers();
  state().settle();
  RecordTransfer transfer({state().mesh, state().groups[0].allocator, *state().groups[0].backend},
                          state().pools, header, sequence);
  for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
    transfer.send(place, tokens, sink, outcome);
  });
  outcome.run(world, [&] { write_end(*sink); });
  outcome.agree(world);
}

ImportedSequence KvCache::import_sequence(ByteSource* source) {
  Communicator& world = state().mesh.world();
  Outcome none;
  none.run(world, [&] { require(source != nullptr, "import: rank 0 has no source"); });
  none.agree(world);
  SequenceHeader header = agreed_header(world, source);
  const SequenceId sequence = create();
  try {
    check_fits(header, header_of(*this, sequence, nullptr));
    state().groups[0].allocator.append(sequence, header.tokens);
    state().pages_taken();
    state().wait_for_tiers();
    state().settle();  // new pages may still be read by earlier work
    RecordTransfer transfer({state().mesh, state().groups[0].allocator, *state().groups[0].backend},
                            state().pools, header, sequence);
    Outcome outcome;
    bool good = true;
    for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
      good = good && transfer.receive(place, tokens, source, outcome);
    });
    outcome.run(world, [&] { read_end(*source); });
    outcome.agree(world);
  } catch (...) {
    erase(sequence);
    throw;
  }
  return {sequence, std::move(header)};
}

}  // namespace kvmesh
