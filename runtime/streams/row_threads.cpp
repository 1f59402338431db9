#include "runtime/streams/row_threads.hpp"

#include <algorithm>
#include <cstring>

namespace kvmesh {
namespace {

// A thread copies and sums as much in some 10 us, beside which neither taking a share nor the fence
// after its stores counts. It also bounds the threads that are woken for a small record.
constexpr std::size_t kShareBytes = 128 << 10;

std::size_t rows_of_share(std::size_t rows, std::size_t bytes) {
  return std::max<std::size_t>(1, rows / std::max<std::size_t>(1, bytes / kShareBytes));
}

}  // namespace

void RowThreads::add_shares(const RecordRows& rows, std::size_t record) {
  const std::size_t most = rows_of_share(rows.count(), rows.size_bytes());
  for (std::size_t first = 0; first < rows.count(); first += most)
    shares_.push_back({record, {first, std::min(first + most, rows.count())}});
}

void RowThreads::gather(std::span<const RecordRows> records, std::span<std::byte> to,
                        std::size_t bytes_of_all) {
  shares_.clear();
  sums_before_.clear();
  places_.clear();
  std::size_t sums = 0, bytes = 0;
  for (std::size_t i = 0; i < records.size(); ++i) {
    add_shares(records[i], i);
    sums_before_.push_back(sums);
    places_.push_back(to.data() + bytes);
    sums += records[i].count();
    bytes += records[i].size_bytes() + kSumBytes;
  }
  sums_.resize(sums);
  const auto sums_of = [&](std::size_t record) {
    return std::span(sums_).subspan(sums_before_[record], records[record].count());
  };
  threads_.for_each(std::ssize(shares_), [&](std::int64_t share, int) {
    const auto& [record, rows] = shares_[static_cast<std::size_t>(share)];
    const BulkCopy copy(bytes_of_all);  // ends on the thread that has copied
    records[record].gather(rows, places_[record], copy, sums_of(record));
  });
  for (std::size_t i = 0; i < records.size(); ++i) {
    const std::uint32_t sum = records[i].joined(sums_of(i), joins_);
    std::memcpy(places_[i] + records[i].size_bytes(), &sum, kSumBytes);
  }
}

std::uint32_t RowThreads::scatter(const RecordRows& rows, std::span<const std::byte> record,
                                  std::size_t bytes_of_all, bool sums) {
  shares_.clear();
  add_shares(rows, 0);
  sums_.assign(shares_.size(), 0);
  threads_.for_each(std::ssize(shares_), [&](std::int64_t item, int) {
    const auto share = static_cast<std::size_t>(item);
    const RowRange range = shares_[share].rows;
    const BulkCopy copy(bytes_of_all);
    rows.scatter(range, record.data() + rows.bytes_before(range.begin), copy,
                 sums ? &sums_[share] : nullptr);
  });
  std::uint32_t sum = rows.sum_before();
  for (std::size_t i = 0; i < shares_.size() && sums; ++i) {
    const auto [begin, end] = shares_[i].rows;
    sum = joins_.of(rows.bytes_before(end) - rows.bytes_before(begin))(sum, sums_[i]);
  }
  return sum;
}

void RowThreads::pack(std::span<const RowPlace> from, std::span<const RowPlace> to,
                      std::size_t heads) {
  std::size_t bytes = 0;
  for (const RowPlace& place : to) bytes += heads * place.pitch;
  const std::size_t rows = heads * to.size(), most = rows_of_share(rows, bytes);
  const auto shares = static_cast<std::int64_t>((rows + most - 1) / most);
  threads_.for_each(shares, [&](std::int64_t share, int) {
    const BulkCopy copy(bytes);
    const std::size_t first = static_cast<std::size_t>(share) * most;
    for (std::size_t row = first; row < std::min(first + most, rows); ++row) {
      const RowPlace &source = from[row / heads], &packed = to[row / heads];
      const std::size_t head = row % heads;
      copy(packed.data + head * packed.pitch, source.data + head * source.pitch, packed.pitch);
    }
  });
}

}  // namespace kvmesh
