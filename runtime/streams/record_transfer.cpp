#include "runtime/streams/record_transfer.hpp"

namespace kvmesh {
namespace {

// Bytes of rows in host memory that are gathered at a time: enough for all threads, and little
// beside the memory of the stream.
constexpr std::size_t kBatchBytes = std::size_t{4} << 20;
// Bytes that a sink which takes records by write() still finds in a cache.
constexpr std::size_t kWrittenBytes = std::size_t{1} << 20;

}  // namespace

RecordTransfer::RecordTransfer(const CacheParts& cache, const SequenceHeader& header,
                               SequenceId sequence, StreamWay way, Outcome& outcome)
    : cache_(cache),
      world_(cache.mesh.world()),
      header_(header),
      sequence_(sequence),
      bytes_of_all_(bytes_after(header)),
      threads_(cache.mesh.threads()) {
  Staging& staging = cache.staging;
  outcome.run([&] {
    if (!staging.stream) staging.stream = cache.groups[0].backend->make_move_stream();
  });
  batches_ = batches_of(header, cache.mesh.head_parallel(),
                        staging.stream ? staging.batch_bytes : kBatchBytes);
  outcome.run([&] {
    if (staging.stream) staged_.emplace(cache, batches_, sequence, way);
  });
}

PageRank RecordTransfer::page_rank(int rank) const {
  return cache_.mesh.membership().page_rank(Rank{rank / cache_.mesh.head_parallel()});
}

/// Returns the record of this index among those that move now.
RecordTransfer::Record& RecordTransfer::find_runs(std::size_t index, const RecordPlace& place,
                                                  std::int64_t tokens) {
  if (index == records_.size()) records_.emplace_back();
  Record& record = records_[index];
  record.place = place;
  record.tokens = tokens;
  record.runs = runs_of(cache_.groups[place.group], sequence_, place.first, tokens);
  record.parts.resize(static_cast<std::size_t>(world_.size()));
  const int me = world_.rank().value;
  for (int rank = 0; rank < world_.size(); ++rank)
    if (me == 0 || me == rank)
      record.parts[static_cast<std::size_t>(rank)].moves = moves_on(page_rank(rank), record.runs);
  return record;
}

/// Returns [moves][planes] where this rank's rows of a record lie, in host memory.
std::vector<RowPlace> RecordTransfer::my_rows(const PageMover& mover, const Record& record) {
  const Part& mine = record.parts[static_cast<std::size_t>(world_.rank().value)];
  if (staged_) return mover.rows(mine.moves, staged_->find(record.place));
  return mover.rows(record.place.layer, mine.moves);
}

/// The same of a part that has been packed.
std::vector<RowPlace> RecordTransfer::packed_rows(const PageMover& mover, const Record& record,
                                                  Part& part) {
  return mover.rows(part.moves,
                    mover.places({&record.place.layer, 1}, part.moves, part.packed.data()));
}

/// Brings this rank's rows of a record together for rank 0.
void RecordTransfer::pack(const PageMover& mover, Record& record) {
  Part& mine = record.parts[static_cast<std::size_t>(world_.rank().value)];
  const int heads = header_.groups[record.place.group].heads / cache_.mesh.head_parallel();
  threads_.pack(my_rows(mover, record), packed_rows(mover, record, mine),
                static_cast<std::size_t>(heads));
}

/// Rank 0 receives the rows of all others; its own stay where they are.
void RecordTransfer::collect(const PageMover& mover, Record& record, Outcome& outcome) {
  const int me = world_.rank().value;
  std::vector<Outgoing> outgoing;
  std::vector<Incoming> incoming;
  for (int rank = 1; rank < world_.size(); ++rank) {
    Part& rows = record.parts[static_cast<std::size_t>(rank)];
    if (rows.moves.empty()) continue;
    std::size_t bytes = 0;
    for (const PageMove& move : rows.moves)
      bytes += mover.bytes({&record.place.layer, 1}, move.tokens);
    rows.packed.resize(bytes);
    if (rank == me) {
      outcome.run([&] { pack(mover, record); });
      outgoing.push_back({Rank{0}, rows.packed});
    } else {
      incoming.push_back({Rank{rank}, rows.packed});
    }
  }
  world_.exchange(outgoing, incoming, "export");
}

RecordRows RecordTransfer::rows_of(const Record& record) const {
  return {header_.groups[record.place.group], record.place, record.tokens, record.runs,
          cache_.mesh.head_parallel()};
}

void RecordTransfer::place_part(RecordRows& rows, int rank, const PageMover& mover,
                                Record& record) {
  Part& part = record.parts[static_cast<std::size_t>(rank)];
  rows.place(
      page_rank(rank), rank % cache_.mesh.head_parallel(),
      rank == world_.rank().value ? my_rows(mover, record) : packed_rows(mover, record, part));
}

void RecordTransfer::send(const RecordBatch& batch, ByteSink* sink, Outcome& outcome) {
  const PageMover mover(cache_.pools, batch.group);
  std::vector<RecordRows> all;
  std::size_t records = 0;
  for_each_record(batch, [&](const RecordPlace& place, std::int64_t tokens) {
    Record& record = find_runs(records++, place, tokens);
    collect(mover, record, outcome);
    outcome.run_on_first(world_, [&] {
      RecordRows& rows = all.emplace_back(rows_of(record));
      for (int rank = 0; rank < world_.size(); ++rank) place_part(rows, rank, mover, record);
    });
  });
  outcome.run_on_first(world_, [&] { write(all, *sink); });
}

/// Writes records into the sink's memory, or as many at a time as a cache keeps.
void RecordTransfer::write(std::span<const RecordRows> rows, ByteSink& sink) {
  const auto bytes_of = [](const RecordRows& record) { return record.size_bytes() + kSumBytes; };
  std::size_t all = 0;
  for (const RecordRows& record : rows) all += bytes_of(record);
  if (const std::span<std::byte> room = sink.room(all); !room.empty())
    return threads_.gather(rows, room, bytes_of_all_);
  while (!rows.empty()) {
    std::size_t some = 1, bytes = bytes_of(rows[0]);
    while (some < rows.size() && bytes + bytes_of(rows[some]) <= kWrittenBytes)
      bytes += bytes_of(rows[some++]);
    record_.resize(bytes);
    threads_.gather(rows.first(some), record_, 0);
    sink.write(record_);
    rows = rows.subspan(some);
  }
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
  Record& record = find_runs(0, place, tokens);
  if (world_.size() == 1) {
    outcome.run([&] { keep(record, *source); });
    return !outcome.failed();
  }
  const std::size_t bytes = record_bytes(header_.groups[place.group], tokens);
  const std::span<const std::byte> fetched = fetch(bytes + kSumBytes, source, outcome);
  if (fetched.empty()) return false;
  MemorySource of_all(fetched);
  outcome.run([&] { keep(record, of_all); });
  return true;
}

/// Rank 0 checks what all keep.
void RecordTransfer::keep(Record& record, ByteSource& source) {
  const PageMover mover(cache_.pools, record.place.group);
  const int me = world_.rank().value;
  RecordRows rows = rows_of(record);
  place_part(rows, me, mover, record);
  std::uint32_t sum = rows.sum_before();
  if (const auto bytes = source.view(rows.size_bytes()); !bytes.empty()) {
    sum = threads_.scatter(rows, bytes, bytes_of_all_, me == 0);
  } else {
    const BulkCopy copy(bytes_of_all_);
    rows.scatter(source, buffer_, copy, me == 0 ? &sum : nullptr);
  }
  if (me == 0) check_record(record.place, sum, read_checksum(source));
}

void RecordTransfer::finish(Outcome& outcome) {
  if (staged_) outcome.run([&] { staged_->finish(); });
}

}  // namespace kvmesh
