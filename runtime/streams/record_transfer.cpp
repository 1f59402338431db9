#include "runtime/streams/record_transfer.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/check.hpp"

namespace kvmesh {
namespace {

constexpr std::size_t kSumBytes = sizeof(std::uint32_t);

}  // namespace

RecordTransfer::RecordTransfer(const CacheParts& cache, const SequenceHeader& header,
                               SequenceId sequence)
    : cache_(cache),
      world_(cache.mesh.world()),
      device_(cache.groups[0].backend->device_moves()),
      header_(header),
      sequence_(sequence),
      bytes_of_all_(bytes_after(header)),
      parts_(static_cast<std::size_t>(world_.size())) {}

PageRank RecordTransfer::page_rank(int rank) const {
  return cache_.mesh.membership().page_rank(Rank{rank / cache_.mesh.head_parallel()});
}

/// Fills runs_, and the moves of the parts that this rank has to do with: rank 0 with all.
void RecordTransfer::find_runs(const RecordPlace& place, std::int64_t tokens) {
  const CacheGroup& group = cache_.groups[place.group];
  const std::span<const PageId> pages = group.allocator.pages(sequence_);
  const std::int64_t page_size = group.options.page_size;
  const std::int64_t last_row = group.has_states() ? 0 : page_size - 1;
  const int me = world_.rank().value;
  runs_.clear();
  for (Part& part : parts_) part.moves.clear();
  for (std::int64_t at = 0; at < tokens; at += runs_.back().tokens) {
    const std::int64_t logical = (place.first + at) / page_size;
    const std::int64_t token = (place.first + at) % page_size;
    const PageId page = pages[static_cast<std::size_t>(logical)];
    require(page.valid(), "export: the sequence has no page for token {} any more",
            place.first + at);
    runs_.push_back({page.rank(), at, std::min(page_size - token, tokens - at)});
    for (int rank = 0; rank < world_.size(); ++rank) {
      if ((me != 0 && me != rank) || page_rank(rank) != page.rank()) continue;
      part(rank).moves.push_back({.source = page.index(),
                                  .destination = page.index(),
                                  .source_token = static_cast<int>(std::min(token, last_row)),
                                  .destination_token = static_cast<int>(at),
                                  .tokens = static_cast<int>(runs_.back().tokens)});
    }
  }
}

/// For the rows of a part's moves.
void RecordTransfer::make_room(Part& part, const PageMover& mover, int layer) const {
  std::size_t bytes = 0;
  for (const PageMove& move : part.moves) bytes += mover.bytes({&layer, 1}, move.tokens);
  part.packed.resize(bytes);
}

/// Rank 0 receives the rows of all others; its own stay in its pools if these are in host memory.
void RecordTransfer::collect(const PageMover& mover, int layer, Outcome& outcome) {
  const int me = world_.rank().value;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (int rank = 0; rank < world_.size(); ++rank) {
    Part& rows = part(rank);
    if (rows.moves.empty() || (me == 0 && !is_packed(rank))) continue;
    make_room(rows, mover, layer);
    if (rank == me) {
      outcome.run([&] {
        mover.move({&layer, 1}, rows.moves, mover.my_pools(), {.packed = rows.packed.data()},
                   device_);
      });
    }
    if (me != 0) outgoing.push_back({Rank{0}, rows.packed});
    if (me == 0 && rank != 0) incoming.push_back({Rank{rank}, rows.packed});
  }
  world_.exchange(outgoing, incoming, "export");
}

void RecordTransfer::place_part(RecordRows& rows, int rank, const PageMover& mover, int layer) {
  const MoveEnd end =
      is_packed(rank) ? MoveEnd{.packed = part(rank).packed.data()} : mover.my_pools();
  rows.place(page_rank(rank), rank % cache_.mesh.head_parallel(),
             mover.rows(layer, part(rank).moves, end));
}

void RecordTransfer::send(const RecordPlace& place, std::int64_t tokens, ByteSink* sink,
                          Outcome& outcome) {
  const PageMover mover(cache_.pools, place.group);
  find_runs(place, tokens);
  collect(mover, place.layer, outcome);
  if (world_.rank().value != 0) return;
  RecordRows rows(header_.groups[place.group], tokens, runs_, cache_.mesh.head_parallel());
  for (int rank = 0; rank < world_.size(); ++rank) place_part(rows, rank, mover, place.layer);
  outcome.run([&] { write(rows, place, tokens, *sink); });
}

void RecordTransfer::write(const RecordRows& rows, const RecordPlace& place, std::int64_t tokens,
                           ByteSink& sink) {
  const std::size_t bytes = record_bytes(header_.groups[place.group], tokens);
  std::span<std::byte> room = sink.room(bytes + kSumBytes);
  const bool is_in_sink = !room.empty();
  if (!is_in_sink) {
    record_.resize(bytes + kSumBytes);
    room = record_;
  }
  const BulkCopy copy(is_in_sink ? bytes_of_all_ : 0);
  const std::uint32_t sum = rows.gather(room.data(), copy, checksum_before(place), joins_);
  std::memcpy(room.data() + bytes, &sum, kSumBytes);
  if (!is_in_sink) sink.write(room);
}

/// Returns a record and its checksum, read by rank 0; nothing if that has failed before or now.
std::span<const std::byte> RecordTransfer::fetch(std::size_t bytes, ByteSource* source,
                                                 Outcome& outcome) {
  record_.resize(bytes + 1);  // the last says whether the others are there
  const std::span<std::byte> record = std::span(record_).first(bytes);
  outcome.run_on_first(world_, [&] { source->read(record); });
  record_.back() = std::byte{!outcome.failed()};
  broadcast(world_, Rank{0}, record_, "import");
  if (record_.back() == std::byte{0}) return {};
  return record;
}

bool RecordTransfer::receive(const RecordPlace& place, std::int64_t tokens, ByteSource* source,
                             Outcome& outcome) {
  find_runs(place, tokens);
  if (world_.size() == 1) {
    outcome.run([&] { keep(place, tokens, *source); });
    return !outcome.failed();
  }
  const std::size_t bytes = record_bytes(header_.groups[place.group], tokens);
  const std::span<const std::byte> record = fetch(bytes + kSumBytes, source, outcome);
  if (record.empty()) return false;
  MemorySource of_all(record);
  outcome.run([&] { keep(place, tokens, of_all); });
  return true;
}

/// Rank 0 checks what all keep.
void RecordTransfer::keep(const RecordPlace& place, std::int64_t tokens, ByteSource& source) {
  const PageMover mover(cache_.pools, place.group);
  const int me = world_.rank().value;
  if (is_packed(me)) make_room(part(me), mover, place.layer);
  RecordRows rows(header_.groups[place.group], tokens, runs_, cache_.mesh.head_parallel());
  place_part(rows, me, mover, place.layer);
  std::uint32_t sum = checksum_before(place);
  {
    const BulkCopy copy(is_packed(me) ? 0 : bytes_of_all_);
    rows.scatter(source, buffer_, copy, me == 0 ? &sum : nullptr);
  }
  if (me == 0) check_record(place, sum, read_checksum(source));
  if (!is_packed(me)) return;
  std::vector<PageMove> moves = part(me).moves;
  for (PageMove& move : moves) std::swap(move.source_token, move.destination_token);
  mover.move({&place.layer, 1}, moves, {.packed = part(me).packed.data()}, mover.my_pools(),
             device_);
}

}  // namespace kvmesh
