// Exports and imports sequences. World rank 0 has the stream.
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

/// Returns the token whose row in a stream is the state of a sequence of `tokens` tokens: the last.
std::int64_t state_token(std::int64_t tokens) { return std::max<std::int64_t>(tokens - 1, 0); }

/// Returns the first token of which a group has a row.
std::int64_t first_token(const CacheGroup& group, SequenceId sequence) {
  const std::int64_t tokens = group.allocator.length(sequence);
  if (group.has_states()) return state_token(tokens);
  return std::min(tokens, group.allocator.released_pages(sequence) * group.options.page_size);
}

/// Returns the header's entry for a group of layers.
SequenceHeader::Group group_of(const PoolGroup& pool, const CacheGroup& cache, SequenceId sequence,
                               int head_parallel) {
  const CacheOptions& options = cache.options;
  SequenceHeader::Group group{.layers = {pool.layers.begin(), pool.layers.end()},
                              .heads = pool.format.heads * head_parallel,
                              .planes = {},
                              .first = first_token(cache, sequence)};
  for (const PagePlane& plane : pool.format.planes)
    group.planes.push_back({std::string(plane.name), plane.dtype, plane.elements});
  if (options.scales.kind == ScaleKind::kPerTensor) {
    group.k_scale = options.scales.k;
    group.v_scale = options.scales.v;
  }
  return group;
}

/// The parts of a cache that a stream is made from, or goes to.
struct CacheParts {
  Mesh& mesh;
  std::deque<CacheGroup>& groups;
  const PoolStorage& pools;
};

SequenceHeader header_of(const CacheParts& cache, SequenceId sequence,
                         const PrefixKey* key = nullptr) {
  const std::deque<CacheGroup>& groups = cache.groups;
  SequenceHeader header{
      .tokens = groups[0].allocator.length(sequence), .groups = {}, .token_ids = {}, .hashes = {}};
  for (std::size_t g = 0; g < groups.size(); ++g)
    header.groups.push_back(group_of(cache.pools.layout().groups()[g], groups[g], sequence,
                                     cache.mesh.head_parallel()));
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

/// @throws StreamError if the stream's value is not the cache's.
template <class T>
void check_same(const char* what, const T& stream, const T& cache) {
  if (stream == cache) return;
  throw StreamError(Reason::kMismatch,
                    fmt::format("import: the stream has {} {}, the cache {}", what, stream, cache));
}

void check_fits(const SequenceHeader::Group& group, const SequenceHeader::Group& cache) {
  check_same("layers:", fmt::format("{}", fmt::join(group.layers, ",")),
             fmt::format("{}", fmt::join(cache.layers, ",")));
  check_same("kv heads:", group.heads, cache.heads);
  check_same("planes:", group.planes.size(), cache.planes.size());
  for (std::size_t i = 0; i < cache.planes.size(); ++i) {
    const auto text = [](const SequenceHeader::Plane& plane) {
      return fmt::format("{} of {} {}", plane.name, plane.elements, name(plane.dtype));
    };
    check_same("a plane", text(group.planes[i]), text(cache.planes[i]));
  }
  check_same("a scale of keys", group.k_scale, cache.k_scale);
  check_same("a scale of values", group.v_scale, cache.v_scale);
}

/// Refuses a stream without a token that the next query of a group's window sees.
void check_window(const SequenceHeader::Group& group, std::int64_t tokens, std::int64_t window) {
  const std::int64_t seen = window == 0 ? 0 : std::max<std::int64_t>(tokens - window + 1, 0);
  if (group.first <= seen) return;
  throw StreamError(Reason::kMismatch,
                    fmt::format("import: the stream's tokens of layer {} begin at {}, the cache's "
                                "window at {}",
                                group.layers[0], group.first, seen));
}

void check_fits(const SequenceHeader& header, const SequenceHeader& cache,
                const std::deque<CacheGroup>& groups) {
  check_same("layer groups:", header.groups.size(), cache.groups.size());
  for (std::size_t g = 0; g < groups.size(); ++g) {
    check_fits(header.groups[g], cache.groups[g]);
    if (groups[g].has_states()) {
      check_same("states at token", header.groups[g].first, state_token(header.tokens));
    } else {
      check_window(header.groups[g], header.tokens, groups[g].options.window);
    }
  }
}

/// Gives up the pages behind windows that the stream has no tokens for.
void give_up_pages_before(const SequenceHeader& header, SequenceId sequence,
                          std::deque<CacheGroup>& groups) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const std::int64_t window = groups[g].options.window;
    if (window > 0) groups[g].allocator.slide_window(sequence, header.groups[g].first + window - 1);
  }
}

/// Returns the moves of a record's tokens that page rank `pool` holds, from its pages to the
/// record.
std::vector<PageMove> moves_of(const CacheGroup& group, SequenceId sequence, PageRank pool,
                               std::int64_t first, std::int64_t tokens) {
  const std::span<const PageId> pages = group.allocator.pages(sequence);
  const std::int64_t page_size = group.options.page_size;
  const std::int64_t last_row = group.has_states() ? 0 : page_size - 1;
  std::vector<PageMove> moves;
  for (std::int64_t at = first; at < first + tokens;) {
    const std::int64_t logical = at / page_size, token = at % page_size;
    const std::int64_t count = std::min(page_size - token, first + tokens - at);
    const PageId page = pages[static_cast<std::size_t>(logical)];
    require(page.valid(), "export: the sequence has no page for token {} any more", at);
    if (page.rank() == pool) {
      moves.push_back({.source = page.index(),
                       .destination = page.index(),
                       .source_token = static_cast<int>(std::min(token, last_row)),
                       .destination_token = static_cast<int>(at - first),
                       .tokens = static_cast<int>(count)});
    }
    at += count;
  }
  return moves;
}

/// Returns the moves from the record to the pages.
std::vector<PageMove> reversed(std::vector<PageMove> moves) {
  for (PageMove& move : moves) std::swap(move.source_token, move.destination_token);
  return moves;
}

/// Returns the end of moves that is a rank's heads in a record. `token` is the member that counts
/// the record's tokens.
MoveEnd record_end(const SequenceHeader::Group& group, std::byte* record, std::int64_t tokens,
                   std::int64_t first_head, std::int32_t PageMove::*token) {
  return {.places = [=, &group](int, std::size_t plane, const PageMove& move, std::size_t width) {
    const std::size_t row = width / static_cast<std::size_t>(move.tokens);
    const auto at = static_cast<std::size_t>(first_head * tokens + move.*token);
    return RowPlace{record + plane_offset(group, tokens, plane) + at * row,
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

/// The result of rank 0's work, shared with all ranks: success, or an error that each throws.
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

/// Moves one record at a time between the pools and rank 0's stream.
class RecordTransfer {
 public:
  RecordTransfer(const CacheParts& cache, const SequenceHeader& header, SequenceId sequence)
      : cache_(cache),
        device_(cache.groups[0].backend->device_moves()),
        header_(header),
        sequence_(sequence) {}

  /// Packs this rank's part, collects all parts on rank 0 and writes them there. Collective.
  void send(const RecordPlace& place, std::int64_t tokens, ByteSink* sink, Outcome& outcome) {
    const SequenceHeader::Group& group = header_.groups[place.group];
    const PageMover mover(cache_.pools, place.group);
    Communicator& world = cache_.mesh.world();
    const std::span<const int> layer(&place.layer, 1);
    const int me = world.rank().value;
    const bool collects = me == 0;
    std::vector<Outgoing> outgoing;
    std::vector<Incoming> incoming;
    std::vector<std::vector<std::byte>> packed(static_cast<std::size_t>(world.size()));
    std::vector<std::vector<PageMove>> moves(packed.size());
    for (int rank = 0; rank < world.size(); ++rank) {
      if (!collects && rank != me) continue;
      const auto at = static_cast<std::size_t>(rank);
      moves[at] = moves_on(rank, place, tokens);
      if (moves[at].empty() || (collects && rank == me)) continue;
      packed[at].resize(bytes_of(mover, layer, moves[at]));
      if (collects) {
        incoming.push_back({Rank{rank}, packed[at]});
      } else {
        mover.move(layer, moves[at], mover.my_pools(), {.packed = packed[at].data()}, device_);
        outgoing.push_back({Rank{0}, packed[at]});
      }
    }
    world.exchange(outgoing, incoming, "export");
    if (!collects) return;
    record_.resize(record_bytes(group, tokens));
    for (int rank = 0; rank < world.size(); ++rank) {
      const auto at = static_cast<std::size_t>(rank);
      const MoveEnd from = rank == me ? mover.my_pools() : MoveEnd{.packed = packed[at].data()};
      mover.move(layer, moves[at], from,
                 record_end(group, record_.data(), tokens, first_head(group, rank),
                            &PageMove::destination_token),
                 device_);
    }
    outcome.run(world, [&] { write_record(*sink, place, record_); });
  }

  /// Reads a record on rank 0, sends it to all and keeps this rank's part. Returns whether rank 0
  /// could read it. Collective.
  bool receive(const RecordPlace& place, std::int64_t tokens, ByteSource* source,
               Outcome& outcome) {
    const SequenceHeader::Group& group = header_.groups[place.group];
    const PageMover mover(cache_.pools, place.group);
    Communicator& world = cache_.mesh.world();
    record_.resize(record_bytes(group, tokens) + 1);  // the last byte: whether the record is good
    const std::span<std::byte> content = std::span(record_).first(record_.size() - 1);
    outcome.run(world, [&] { read_record(*source, place, content); });
    record_.back() = std::byte{!outcome.failed()};
    broadcast(world, Rank{0}, record_, "import");
    if (record_.back() == std::byte{0}) return false;
    const int me = world.rank().value;
    const std::span<const int> layer(&place.layer, 1);
    mover.move(
        layer, reversed(moves_on(me, place, tokens)),
        record_end(group, record_.data(), tokens, first_head(group, me), &PageMove::source_token),
        mover.my_pools(), device_);
    return true;
  }

 private:
  std::vector<PageMove> moves_on(int rank, const RecordPlace& place, std::int64_t tokens) const {
    const Rank kv_rank{rank / cache_.mesh.head_parallel()};
    return moves_of(cache_.groups[place.group], sequence_,
                    cache_.mesh.membership().page_rank(kv_rank), place.first, tokens);
  }
  std::int64_t first_head(const SequenceHeader::Group& group, int rank) const {
    const int heads = cache_.mesh.head_parallel();
    return share_of(group.heads, rank % heads, heads).begin;
  }

  CacheParts cache_;
  DeviceMoves device_;
  const SequenceHeader& header_;
  SequenceId sequence_;
  std::vector<std::byte> record_;
};

}  // namespace

void KvCache::export_sequence(SequenceId sequence, ByteSink* sink, const PrefixKey* key) {
  State& cache = state();
  const CacheParts parts{cache.mesh, cache.groups, cache.pools};
  const SequenceHeader header = header_of(parts, sequence, key);
  Communicator& world = cache.mesh.world();
  Outcome outcome;
  outcome.run(world, [&] {
    require(sink != nullptr, "export: rank 0 has no sink");
    sink->write(encode(header));
  });
  cache.wait_for_tiers();
  cache.settle();
  RecordTransfer transfer(parts, header, sequence);
  for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
    transfer.send(place, tokens, sink, outcome);
  });
  outcome.run(world, [&] { write_end(*sink); });
  outcome.agree(world);
}

ImportedSequence KvCache::import_sequence(ByteSource* source) {
  State& cache = state();
  const CacheParts parts{cache.mesh, cache.groups, cache.pools};
  Communicator& world = cache.mesh.world();
  Outcome given;
  given.run(world, [&] { require(source != nullptr, "import: rank 0 has no source"); });
  given.agree(world);
  SequenceHeader header = agreed_header(world, source);
  const SequenceId sequence = create();
  try {
    check_fits(header, header_of(parts, sequence), cache.groups);
    for (CacheGroup& group : cache.groups) group.allocator.append(sequence, header.tokens);
    give_up_pages_before(header, sequence, cache.groups);
    cache.pages_taken();
    cache.wait_for_tiers();
    cache.settle();  // new pages may still be read by earlier work
    RecordTransfer transfer(parts, header, sequence);
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
