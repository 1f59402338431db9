#include "runtime/streams/record_rows.hpp"

#include <algorithm>

namespace kvmesh {
namespace {

// Half of what Linux keeps in a socket.
constexpr std::size_t kPieceBytes = 96 << 10;

}  // namespace

RecordRows::RecordRows(const SequenceHeader::Group& group, std::int64_t tokens,
                       std::span<const RecordRun> runs, int head_parallel)
    : runs_(runs),
      heads_(static_cast<std::size_t>(group.heads)),
      head_ranks_(static_cast<std::size_t>(head_parallel)),
      heads_of_rank_(heads_ / head_ranks_),
      tokens_(static_cast<std::size_t>(tokens)) {
  for (const SequenceHeader::Plane& plane : group.planes)
    row_bytes_.push_back(static_cast<std::size_t>(plane.elements) * size_bytes(plane.dtype));
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

// Rows are read in the order of the pages, in which a page's heads follow one another: processors
// fetch ahead within such a run of bytes, and in the record's order they would jump at each row.
// So the rows' checksums are joined in the record's order afterwards.
std::uint32_t RecordRows::gather(std::byte* record, const BulkCopy& copy, std::uint32_t before,
                                 Crc32cJoins& joins) const {
  std::vector<std::uint32_t> sums(planes() * heads_ * runs_.size());
  std::size_t before_plane = 0;
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    for (std::size_t run = 0; run < runs_.size(); ++run) {
      const std::size_t bytes = width(plane, run);
      for (std::size_t head = 0; head < heads_; ++head) {
        const RowPlace& rows = at(head / heads_of_rank_, run, plane);
        const std::byte* const row = rows.data + head % heads_of_rank_ * rows.pitch;
        const std::size_t token = head * tokens_ + static_cast<std::size_t>(runs_[run].token);
        sums[(plane * heads_ + head) * runs_.size() + run] = crc32c({row, bytes});
        copy(record + before_plane + token * row_bytes_[plane], row, bytes);
      }
    }
    before_plane += heads_ * tokens_ * row_bytes_[plane];
  }
  return joined(sums, before, joins);
}

std::uint32_t RecordRows::joined(std::span<const std::uint32_t> sums, std::uint32_t before,
                                 Crc32cJoins& joins) const {
  std::uint32_t sum = before;
  std::vector<const Crc32cJoin*> of_runs(runs_.size());
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    for (std::size_t run = 0; run < runs_.size(); ++run) {
      const std::size_t bytes = width(plane, run);
      of_runs[run] = &joins.try_emplace(bytes, bytes).first->second;
    }
    for (std::size_t head = 0; head < heads_; ++head)
      for (std::size_t run = 0; run < runs_.size(); ++run)
        sum = (*of_runs[run])(sum, sums[(plane * heads_ + head) * runs_.size() + run]);
  }
  return sum;
}

// In the record's order, some heads at a time: a socket is filled again while they are copied, and
// what is read stays in a cache.
void RecordRows::scatter(ByteSource& source, std::vector<std::byte>& buffer, const BulkCopy& copy,
                         std::uint32_t* sum) const {
  for (std::size_t plane = 0; plane < planes(); ++plane) {
    const std::size_t head_bytes = tokens_ * row_bytes_[plane];
    const std::size_t heads_at_once = std::max<std::size_t>(1, kPieceBytes / head_bytes);
    std::span<const std::byte> bytes;
    for (std::size_t head = 0; head < heads_; ++head) {
      if (head % heads_at_once == 0)
        bytes = take(source, std::min(heads_at_once, heads_ - head) * head_bytes, buffer);
      for (std::size_t run = 0; run < runs_.size(); ++run) {
        const RowPlace& rows = at(head / heads_of_rank_, run, plane);
        const auto row = bytes.first(width(plane, run));
        if (sum != nullptr) *sum = crc32c(row, *sum);
        if (rows.data != nullptr)
          copy(rows.data + head % heads_of_rank_ * rows.pitch, row.data(), row.size());
        bytes = bytes.subspan(row.size());
      }
    }
  }
}

}  // namespace kvmesh
