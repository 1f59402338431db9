#include "runtime/streams/record_rows.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

// Half of what Linux keeps in a socket.
constexpr std::size_t kReadBytes = 96 << 10;
// With the next one fetched, two of them fit the nearest cache (32 KiB or more).
constexpr std::size_t kPieceBytes = 8 << 10;

/// Copies a row, if it goes somewhere, and continues the checksum, if there is one. Each piece is
/// copied first, and then summed, while the nearest cache has it: the loads of a copy overlap with
/// its stores and with the fetch of what comes next, those of a checksum wait for one another.
void copy_row(std::byte* to, std::span<const std::byte> row, const std::byte* next,
              const BulkCopy& copy, std::uint32_t* sum) {
  while (!row.empty()) {
    const auto piece = row.first(std::min(row.size(), kPieceBytes));
    row = row.subspan(piece.size());
    if (to != nullptr) {
      copy(to, piece.data(), piece.size(), row.empty() ? next : row.data());
      to += piece.size();
    }
    if (sum != nullptr) *sum = crc32c(piece, *sum);
  }
}

}  // namespace

RecordRows::RecordRows(const SequenceHeader::Group& group, const RecordPlace& place,
                       std::int64_t tokens, std::span<const RecordRun> runs, int head_parallel)
    : place_(place),
      runs_(runs),
      heads_(static_cast<std::size_t>(group.heads)),
      head_ranks_(static_cast<std::size_t>(head_parallel)),
      heads_of_rank_(heads_ / head_ranks_),
      tokens_(static_cast<std::size_t>(tokens)) {
  plane_begins_.push_back(0);
  for (const SequenceHeader::Plane& plane : group.planes) {
    row_bytes_.push_back(static_cast<std::size_t>(plane.elements) *
                         kvmesh::size_bytes(plane.dtype));
    plane_begins_.push_back(plane_begins_.back() + heads_ * tokens_ * row_bytes_.back());
  }
  places_.resize(head_ranks_ * runs_.size() * planes());
}

void RecordRows::place(PageRank rank, int head_rank, std::span<const RowPlace> rows) {
  auto next = rows.begin();
  for (std::size_t run = 0; run < runs_.size(); ++run) {
    if (runs_[run].rank != rank) continue;
    const auto to = (static_cast<std::size_t>(head_rank) * runs_.size() + run) * planes();
    std::copy_n(next, planes(), places_.begin() + static_cast<std::ptrdiff_t>(to));
    next += static_cast<std::ptrdiff_t>(planes());
  }
}

/// Returns where a page has the row; null if it has not been placed.
std::byte* RecordRows::data(const Row& row) const {
  const std::size_t of_run = row.head / heads_of_rank_ * runs_.size() + row.run;
  const RowPlace& place = places_[of_run * planes() + row.plane];
  return place.data == nullptr ? nullptr : place.data + row.head % heads_of_rank_ * place.pitch;
}

/// Returns where the record has the row.
std::size_t RecordRows::offset(const Row& row) const {
  const std::size_t token = row.head * tokens_ + static_cast<std::size_t>(runs_[row.run].token);
  return plane_begins_[row.plane] + token * row_bytes_[row.plane];
}

// Rows are read in the order of the pages, in which a page's heads follow one another: processors
// fetch ahead within such a run of bytes, and in the record's order they would jump at each row.
// So the rows' checksums are joined in the record's order afterwards.
void RecordRows::gather(RowRange rows, std::byte* record, const BulkCopy& copy,
                        std::span<std::uint32_t> sums) const {
  const std::size_t of_plane = heads_ * runs_.size(), in_plane = rows.begin % of_plane;
  Row row{rows.begin / of_plane, in_plane % heads_, in_plane / heads_};
  const std::byte* from = data(row);
  for (std::size_t i = rows.begin; i < rows.end; ++i) {
    const Row here = row;
    const std::span bytes(from, width(row.plane, row.run));
    if (++row.head == heads_) row = {row.plane, 0, row.run + 1};
    if (row.run == runs_.size()) row = {row.plane + 1, 0, 0};
    from = i + 1 < rows.end ? data(row) : nullptr;
    std::uint32_t& sum = sums[(here.plane * heads_ + here.head) * runs_.size() + here.run];
    sum = 0;
    copy_row(record + offset(here), bytes, from, copy, &sum);
  }
}

std::uint32_t RecordRows::joined(std::span<const std::uint32_t> sums, Crc32cJoins& joins) const {
  std::uint32_t sum = sum_before();
  std::vector<const Crc32cJoin*> of_runs(runs_.size());
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    for (std::size_t run = 0; run < runs_.size(); ++run)
      of_runs[run] = &joins.of(width(plane, run));
    for (std::size_t head = 0; head < heads_; ++head)
      for (std::size_t run = 0; run < runs_.size(); ++run)
        sum = (*of_runs[run])(sum, sums[(plane * heads_ + head) * runs_.size() + run]);
  }
  return sum;
}

void RecordRows::scatter(RowRange rows, const std::byte* bytes, const BulkCopy& copy,
                         std::uint32_t* sum) const {
  Row row{rows.begin / runs_.size() / heads_, rows.begin / runs_.size() % heads_,
          rows.begin % runs_.size()};
  for (std::size_t i = rows.begin; i < rows.end; ++i) {
    const std::span row_bytes(bytes, width(row.plane, row.run));
    bytes += row_bytes.size();
    copy_row(data(row), row_bytes, bytes, copy, sum);
    if (++row.run == runs_.size()) row = {row.plane, row.head + 1, 0};
    if (row.head == heads_) row = {row.plane + 1, 0, 0};
  }
}

std::size_t RecordRows::bytes_before(std::size_t row) const {
  if (row == count()) return size_bytes();
  const std::size_t head = row / runs_.size();
  return offset({head / heads_, head % heads_, row % runs_.size()});
}

// Some heads at a time: a socket is filled again while they are copied, and what is read stays in a
// cache.
void RecordRows::scatter(ByteSource& source, std::vector<std::byte>& buffer, const BulkCopy& copy,
                         std::uint32_t* sum) const {
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    const std::size_t head_bytes = tokens_ * row_bytes_[plane];
    const std::size_t heads_at_once = std::max<std::size_t>(1, kReadBytes / head_bytes);
    for (std::size_t head = 0; head < heads_; head += heads_at_once) {
      const std::size_t heads = std::min(heads_at_once, heads_ - head);
      const std::size_t first = (plane * heads_ + head) * runs_.size();
      scatter({first, first + heads * runs_.size()},
              take(source, heads * head_bytes, buffer).data(), copy, sum);
    }
  }
}

}  // namespace kvmesh
