#include "runtime/streams/record_transfer.hpp"

#include <cstring>

namespace kvmesh {
namespace {

constexpr std::size_t kSumBytes = sizeof(std::uint32_t);

}  // namespace

RecordTransfer::RecordTransfer(const CacheParts& cache, const SequenceHeader& header,
                               SequenceId sequence, StreamWay way, Outcome& outcome)
    : cache_(cache),
      world_(cache.mesh.world()),
      header_(header),
      sequence_(sequence),
      bytes_of_all_(bytes_after(header)),
      parts_(static_cast<std::size_t>(world_.size())) {
  outcome.run([&] {
    Staging& staging = cache.staging;
    if (!staging.stream) staging.stream = cache.groups[0].backend->make_move_stream();
    if (staging.stream) staged_.emplace(cache, header, sequence, way);
  });
}

PageRank RecordTransfer::page_rank(int rank) const {
  return cache_.mesh.membership().page_rank(Rank{rank / cache_.mesh.head_parallel()});
}

/// Fills runs_, and the moves of the parts that this rank has to do with: rank 0 with all.
void RecordTransfer::find_runs(const RecordPlace& place, std::int64_t tokens) {
  const int me = world_.rank().value;
  runs_ = runs_of(cache_.groups[place.group], sequence_, place.first, tokens);
  for (int rank = 0; rank < world_.size(); ++rank)
    if (me == 0 || me == rank) part(rank).moves = moves_on(page_rank(rank), runs_);
}

/// Brings this rank's rows of a record together for rank 0.
void RecordTransfer::pack(const PageMover& mover, const RecordPlace& place) {
  const std::span<const int> layer(&place.layer, 1);
  Part& mine = part(world_.rank().value);
  if (!staged_) {
    return mover.move(layer, mine.moves, mover.my_pools(), {.packed = mine.packed.data()}, {});
  }
  const std::vector<std::byte*> staged = staged_->find(place);
  const std::vector<std::byte*> packed = mover.places(layer, mine.moves, mine.packed.data());
  for (std::size_t i = 0; i < staged.size(); ++i)
    std::memcpy(packed[i], staged[i], mover.bytes(layer, mine.moves[i].tokens));
}

/// Rank 0 receives the rows of all others; its own stay where they are.
void RecordTransfer::collect(const PageMover& mover, const RecordPlace& place, Outcome& outcome) {
  const int me = world_.rank().value;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (int rank = 1; rank < world_.size(); ++rank) {
    Part& rows = part(rank);
    if (rows.moves.empty()) continue;
    std::size_t bytes = 0;
    for (const PageMove& move : rows.moves) bytes += mover.bytes({&place.layer, 1}, move.tokens);
    rows.packed.resize(bytes);
    if (rank == me) {
      outcome.run([&] { pack(mover, place); });
      outgoing.push_back({Rank{0}, rows.packed});
    } else {
      incoming.push_back({Rank{rank}, rows.packed});
    }
  }
  world_.exchange(outgoing, incoming, "export");
}

void RecordTransfer::place_part(RecordRows& rows, int rank, const PageMover& mover,
                                const RecordPlace& place) {
  Part& of = part(rank);
  const auto lie = [&] {
    if (rank != world_.rank().value)
      return mover.rows(of.moves, mover.places({&place.layer, 1}, of.moves, of.packed.data()));
    if (staged_) return mover.rows(of.moves, staged_->find(place));
    return mover.rows(place.layer, of.moves);
  };
  rows.place(page_rank(rank), rank % cache_.mesh.head_parallel(), lie());
}

void RecordTransfer::send(const RecordPlace& place, std::int64_t tokens, ByteSink* sink,
                          Outcome& outcome) {
  const PageMover mover(cache_.pools, place.group);
  find_runs(place, tokens);
  collect(mover, place, outcome);
  outcome.run_on_first(world_, [&] {
    RecordRows rows(header_.groups[place.group], tokens, runs_, cache_.mesh.head_parallel());
    for (int rank = 0; rank < world_.size(); ++rank) place_part(rows, rank, mover, place);
    write(rows, place, tokens, *sink);
  });
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
  record_.resize(bytes + 1);  // the last is whether the others are there
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
  RecordRows rows(header_.groups[place.group], tokens, runs_, cache_.mesh.head_parallel());
  place_part(rows, me, mover, place);
  std::uint32_t sum = checksum_before(place);
  {
    const BulkCopy copy(bytes_of_all_);
    rows.scatter(source, buffer_, copy, me == 0 ? &sum : nullptr);
  }
  if (me == 0) check_record(place, sum, read_checksum(source));
}

void RecordTransfer::finish(Outcome& outcome) {
  if (staged_) outcome.run([&] { staged_->finish(); });
}

}  // namespace kvmesh
