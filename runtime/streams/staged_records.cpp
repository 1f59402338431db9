#include "runtime/streams/staged_records.hpp"

#include <algorithm>

namespace kvmesh {

namespace {

/// Adds the batches of a group that has tokens.
void add_batches(std::vector<RecordBatch>& batches, const SequenceHeader& header, std::size_t group,
                 int head_parallel, std::size_t most_bytes) {
  const SequenceHeader::Group& of = header.groups[group];
  const std::span<const int> layers = of.layers;
  const auto bytes_of = [&](std::int64_t tokens) {
    return record_bytes(of, tokens) / static_cast<std::size_t>(head_parallel);
  };
  const std::size_t records =
      most_bytes / bytes_of(std::min(kRecordTokens, header.tokens - of.first));
  const std::size_t layers_at_once = std::clamp<std::size_t>(records, 1, layers.size());
  const auto records_of_layer = static_cast<std::int64_t>(records / layers.size());
  const std::int64_t tokens_at_once = kRecordTokens * std::max<std::int64_t>(1, records_of_layer);
  for (std::int64_t first = of.first; first < header.tokens; first += tokens_at_once) {
    const std::int64_t tokens = std::min(tokens_at_once, header.tokens - first);
    for (std::size_t layer = 0; layer < layers.size(); layer += layers_at_once) {
      const auto some = layers.subspan(layer, std::min(layers_at_once, layers.size() - layer));
      batches.push_back({group, first, tokens, some, bytes_of(tokens) * some.size()});
    }
  }
}

}  // namespace

std::vector<RecordBatch> batches_of(const SequenceHeader& header, int head_parallel,
                                    std::size_t most_bytes) {
  std::vector<RecordBatch> batches;
  for (std::size_t g = 0; g < header.groups.size(); ++g)
    if (header.groups[g].first < header.tokens)
      add_batches(batches, header, g, head_parallel, most_bytes);
  return batches;
}

StagedRecords::StagedRecords(const CacheParts& cache, std::span<const RecordBatch> batches,
                             SequenceId sequence, StreamWay way)
    : cache_(cache), sequence_(sequence), way_(way), batches_(batches) {
  std::size_t bytes = cache.staging.batch_bytes;
  for (const RecordBatch& batch : batches_) bytes = std::max(bytes, batch.size_bytes);
  for (std::size_t i = 0; i < std::min(cache.staging.buffers.size(), batches_.size()); ++i) {
    HostMemory& buffer = cache.staging.buffers[i];
    if (buffer.size_bytes() < bytes) buffer = HostMemory(cache.mesh.device(), bytes);
  }
}

StagedRecords::~StagedRecords() {
  try {
    wait();
  } catch (const std::exception&) {
    // A caller that needed the moves has waited for them.
  }
}

std::vector<std::byte*> StagedRecords::find(const RecordPlace& place) {
  while (!has_entered(place)) enter_next();
  const RecordBatch& batch = batches_[entered_ - 1];
  const Layout& layout = layouts_[(entered_ - 1) % layouts_.size()];
  const auto layer = std::ranges::find(batch.layers, place.layer) - batch.layers.begin();
  const auto before = batch.layers.first(static_cast<std::size_t>(layer));
  const auto record = static_cast<std::size_t>((place.first - batch.first) / kRecordTokens);
  const PageMover mover = this->mover(batch);
  std::vector<std::byte*> begins;
  for (std::size_t i = layout.first_move[record]; i < layout.first_move[record + 1]; ++i)
    begins.push_back(layout.packed[i] + mover.bytes(before, layout.moves[i].tokens));
  return begins;
}

bool StagedRecords::has_entered(const RecordPlace& place) const {
  if (entered_ == 0) return false;
  const RecordBatch& batch = batches_[entered_ - 1];
  return batch.group == place.group && place.first < batch.first + batch.tokens &&
         std::ranges::find(batch.layers, place.layer) != batch.layers.end();
}

/// Lets the host work on the next batch. The other buffer is then free, as its batch has been read,
/// or has been moved.
void StagedRecords::enter_next() {
  const std::size_t next = entered_;
  if (way_ == StreamWay::kImport) {
    start_entered();
    lay_out(next);
  } else {
    if (next == 0) start(0);
    wait();
    if (next + 1 < batches_.size()) start(next + 1);
  }
  ++entered_;
}

void StagedRecords::finish() {
  start_entered();
  wait();
}

/// Starts to move the imported batch that the host has written, after the one before, whose buffer
/// the host writes next.
void StagedRecords::start_entered() {
  if (entered_ == 0) return;
  wait();
  start(entered_ - 1);
}

void StagedRecords::lay_out(std::size_t batch) {
  const RecordBatch& records = batches_[batch];
  Layout& layout = layouts_[batch % layouts_.size()];
  layout = {};
  const std::int64_t end = records.first + records.tokens;
  for (std::int64_t first = records.first; first < end; first += kRecordTokens) {
    layout.first_move.push_back(layout.moves.size());
    const std::vector<PageMove> moves =
        moves_on(cache_.mesh.page_rank(), runs_of(cache_.groups[records.group], sequence_, first,
                                                  std::min(kRecordTokens, end - first)));
    layout.moves.insert(layout.moves.end(), moves.begin(), moves.end());
  }
  layout.first_move.push_back(layout.moves.size());
  layout.packed = mover(records).places(records.layers, layout.moves,
                                        cache_.staging.buffers[batch % layouts_.size()].data());
}

void StagedRecords::start(std::size_t batch) {
  if (way_ == StreamWay::kExport) lay_out(batch);
  const Layout& layout = layouts_[batch % layouts_.size()];
  if (layout.moves.empty()) return;
  MoveStream& stream = *cache_.staging.stream;
  is_moving_ = true;  // also if that fails halfway
  mover(batches_[batch])
      .start(batches_[batch].layers, layout.moves, layout.packed, way_ == StreamWay::kExport,
             stream);
  stream.call(
      [failed = has_failed_](bool moved) {
        if (!moved) *failed = true;
      },
      false);
}

void StagedRecords::wait() {
  if (!is_moving_) return;
  cache_.staging.wait(cache_.mesh.world());
  is_moving_ = false;
  if (*has_failed_) throw Error("sequence stream: pages could not be moved");
}

}  // namespace kvmesh
