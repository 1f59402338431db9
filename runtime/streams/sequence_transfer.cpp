// Exports and imports sequences. World rank 0 has the stream.
//
//   export   each rank packs its heads of its tokens of a record, rank 0 puts them in place
//   import   rank 0 reads a record and sends it to all, each rank takes its heads of its tokens
#include "core/check.hpp"
#include "runtime/cache/cache_state.hpp"
#include "runtime/memory/head_scales.hpp"
#include "runtime/streams/record_transfer.hpp"
#include "runtime/streams/stream_outcome.hpp"

namespace kvmesh {
namespace {

using Reason = StreamError::Reason;

/// Returns the token whose row in a stream is the state of a sequence of `tokens` tokens: the last.
std::int64_t state_token(std::int64_t tokens) { return std::max<std::int64_t>(tokens - 1, 0); }

/// Returns the first token of which a group has a row.
std::int64_t first_token(const CacheGroup& group, SequenceId sequence) {
  return group.has_states() ? state_token(group.allocator.length(sequence))
                            : group.allocator.first_kept(sequence);
}

/// Sets the scales that no plane holds.
void set_scales(SequenceHeader::Group& group, const CacheOptions& options) {
  const KvScales& scales = options.scales;
  if (has_scales(options, ScaleKind::kPerHead)) {
    group.k_scales = scales.k_heads;
    group.v_scales = scales.v_heads;
  } else if (has_scales(options, ScaleKind::kPerTensor)) {
    group.k_scales = {scales.k};
    if (options.page_kind != PageKind::kLatent) group.v_scales = {scales.v};
  }
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
  set_scales(group, options);
  return group;
}

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

/// The shortest decimals, which are equal only for equal numbers.
std::string text_of(const std::vector<float>& scales) {
  return scales.empty() ? "none" : fmt::format("{}", fmt::join(scales, ","));
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
  check_same("scales of keys:", text_of(group.k_scales), text_of(cache.k_scales));
  check_same("scales of values:", text_of(group.v_scales), text_of(cache.v_scales));
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

/// Returns the first token of a page that a group keeps of the sequence.
std::int64_t first_of_pages(const CacheGroup& group, const SequenceHeader::Group& in_stream) {
  if (group.options.window == 0) return 0;
  return in_stream.first / group.options.page_size * group.options.page_size;
}

/// Appends the stream's tokens. Pages behind a window are given up one by one, so a group takes no
/// more of them than it keeps, or one.
void append_all(const SequenceHeader& header, SequenceId sequence, std::deque<CacheGroup>& groups) {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    PageAllocator& allocator = groups[g].allocator;
    const std::int64_t page = groups[g].options.page_size;
    std::int64_t tokens = 0;
    for (; tokens < first_of_pages(groups[g], header.groups[g]); tokens += page) {
      allocator.append(sequence, page);
      allocator.give_up_before(sequence, tokens + page);
    }
    allocator.append(sequence, header.tokens - tokens);
    if (groups[g].options.window > 0) allocator.give_up_before(sequence, header.groups[g].first);
  }
}

/// Reads the header on rank 0 and sends it to all. Collective.
SequenceHeader agreed_header(Communicator& world, ByteSource* source) {
  Outcome outcome;
  std::vector<std::byte> bytes;
  outcome.run_on_first(world, [&] { bytes = encode(read_header(*source)); });
  outcome.agree(world);
  std::uint64_t size = bytes.size();
  broadcast(world, Rank{0}, std::as_writable_bytes(std::span(&size, 1)), "import: header size");
  bytes.resize(size);
  broadcast(world, Rank{0}, bytes, "import: header");
  MemorySource copy(bytes);
  return read_header(copy);
}

}  // namespace

void KvCache::export_sequence(SequenceId sequence, ByteSink* sink, const PrefixKey* key) {
  State& cache = state();
  const CacheParts parts{cache.mesh, cache.groups, cache.pools, cache.staging};
  const SequenceHeader header = header_of(parts, sequence, key);
  Communicator& world = cache.mesh.world();
  Outcome outcome;
  outcome.run_on_first(world, [&] {
    require(sink != nullptr, "export: rank 0 has no sink");
    const std::vector<std::byte> encoded = encode(header);
    sink->expect(encoded.size() + bytes_after(header));
    sink->write(encoded);
  });
  outcome.run([&] {
    cache.wait_for_move_streams();
    cache.wait_idle();
  });
  RecordTransfer transfer(parts, header, sequence, StreamWay::kExport, outcome);
  for (const RecordBatch& batch : transfer.batches()) transfer.send(batch, sink, outcome);
  outcome.agree(world);  // no end mark after rows that a rank could not read
  outcome.run_on_first(world, [&] { write_end(*sink); });
  outcome.agree(world);
}

ImportedSequence KvCache::import_sequence(ByteSource* source) {
  State& cache = state();
  const CacheParts parts{cache.mesh, cache.groups, cache.pools, cache.staging};
  Communicator& world = cache.mesh.world();
  Outcome given;
  given.run_on_first(world, [&] { require(source != nullptr, "import: rank 0 has no source"); });
  given.agree(world);
  SequenceHeader header = agreed_header(world, source);
  const SequenceId sequence = create();
  try {
    check_fits(header, header_of(parts, sequence), cache.groups);
    const auto can_append = [&](std::size_t g) {
      CacheGroup& group = cache.groups[g];
      const std::int64_t kept = header.tokens - first_of_pages(group, header.groups[g]);
      const AppendRequest request{sequence, std::max<std::int64_t>(kept, header.tokens > 0)};
      return group.allocator.can_append({&request, 1});
    };
    cache.take_back_pages(can_append);
    for (std::size_t g = 0; g < cache.groups.size(); ++g) can_append(g).value();
    append_all(header, sequence, cache.groups);
    cache.pages_taken();
    Outcome outcome;
    outcome.run([&] {
      cache.wait_for_move_streams();
      cache.wait_idle();  // new pages may still be read by earlier work
    });
    RecordTransfer transfer(parts, header, sequence, StreamWay::kImport, outcome);
    bool good = true;
    for_each_record(header, [&](const RecordPlace& place, std::int64_t tokens) {
      good = good && transfer.receive(place, tokens, source, outcome);
    });
    if (good) transfer.finish(outcome);
    outcome.run_on_first(world, [&] { read_end(*source); });
    outcome.agree(world);
  } catch (...) {
    erase(sequence);
    cache.pages_taken();
    throw;
  }
  return {sequence, std::move(header)};
}

}  // namespace kvmesh
