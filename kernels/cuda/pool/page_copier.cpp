#include "kernels/cuda/pool/page_copier.hpp"

#include <algorithm>

#include "core/cuda/check.hpp"

namespace kvmesh::cuda {
namespace {

std::size_t bytes_of(const PageMoves& moves, std::size_t move) {
  return static_cast<std::size_t>(moves.moves[move].tokens * moves.token_bytes);
}

std::int64_t largest_page(const PageMoves& moves) {
  std::int64_t row = 1;
  for (const MovedPlane& plane : moves.planes) row = std::max(row, plane.row_bytes);
  return row * moves.heads * moves.page_size;
}

/// Copies between the buffer and host memory, as few times as the host memory has gaps.
void copy_stretches(const PageMoves& moves, std::size_t first, std::size_t last, std::byte* buffer,
                    cudaStream_t stream) {
  while (first < last) {
    std::byte* const host = moves.packed[first];
    std::size_t bytes = bytes_of(moves, first++);
    while (first < last && moves.packed[first] == host + bytes) bytes += bytes_of(moves, first++);
    check(cudaMemcpyAsync(moves.packs ? host : buffer, moves.packs ? buffer : host, bytes,
                          cudaMemcpyDefault, stream),
          "copying pages");
    buffer += bytes;
  }
}

}  // namespace

/// Places the packed rows of moves in buffers, one after another. Returns how many bytes a buffer
/// needs.
std::size_t PageCopier::place(const PageMoves& moves) {
  placed_.clear();
  std::size_t used = 0, most = 0;
  for (std::size_t i = 0; i < moves.moves.size(); ++i) {
    const std::size_t bytes = moves.packed.empty() ? 0 : bytes_of(moves, i);
    if (used > 0 && used + bytes > kBufferBytes) used = 0;
    placed_.push_back({moves.moves[i], static_cast<std::int64_t>(used)});
    used += bytes;
    most = std::max(most, used);
  }
  return most;
}

void PageCopier::move(const PageMoves& moves, cudaStream_t stream) {
  if (moves.moves.empty()) return;
  const std::size_t bytes = place(moves);
  if (bytes > 0) buffer_.reserve(std::max(bytes, kBufferBytes));
  Upload& lists = lists_[next_];
  next_ = (next_ + 1) % lists_.size();
  lists.begin(Upload::bytes_of<MovedPlane>(moves.planes.size()) +
              Upload::bytes_of<PlacedMove>(placed_.size()));
  const PageRowsParams params{
      .planes = lists.add(moves.planes),
      .moves = lists.add(std::span<const PlacedMove>(placed_)),
      .packed = buffer_.data(),
      .page_size = moves.page_size,
      .largest_page = largest_page(moves),
      .heads = static_cast<std::int32_t>(moves.heads),
      .plane_count = static_cast<std::int32_t>(moves.planes.size()),
      .move_count = static_cast<std::int32_t>(moves.moves.size()),
  };
  lists.send(stream);
  if (!moves.packed.empty()) return move_packed(moves, params, stream);
  check(launch_page_rows(params, stream), "moving pages");
}

void PageCopier::move_packed(const PageMoves& moves, PageRowsParams params, cudaStream_t stream) {
  for (std::size_t first = 0; first < placed_.size();) {
    std::size_t last = first + 1;
    while (last < placed_.size() && placed_[last].packed > 0) ++last;
    if (!moves.packs) copy_stretches(moves, first, last, buffer_.data(), stream);
    params.move_count = static_cast<std::int32_t>(last - first);
    check(launch_page_rows(params, stream), "moving pages");
    params.moves += params.move_count;
    if (moves.packs) copy_stretches(moves, first, last, buffer_.data(), stream);
    first = last;
  }
}

}  // namespace kvmesh::cuda
