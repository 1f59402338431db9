#include "kernels/cuda/plan/page_lists.hpp"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/check.hpp"
#include "kernels/cuda/plan/kernels.hpp"

namespace kvmesh::cuda {
namespace {

constexpr int kLeastRoom = 4;  // 16 pages

int room_for(std::int64_t size) {
  return std::max(kLeastRoom,
                  static_cast<int>(std::bit_width(static_cast<std::uint64_t>(size - 1))));
}

}  // namespace

void PageLists::change(std::size_t list, std::int64_t keep, std::span<const LocalPage> fresh) {
  if (list >= lists_.size()) lists_.resize(list + 1);
  List& it = lists_[list];
  require(keep >= 0 && keep <= it.size, "page list {}: keep {} of {} pages", list, keep, it.size);
  const std::int64_t size = keep + std::ssize(fresh);
  if (size > 0 && (it.room < 0 || size > std::int64_t{1} << it.room)) {
    move_to_larger(it, keep, size);
  }
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    changes_.push_back({it.first + keep + static_cast<std::int64_t>(i), fresh[i]});
    max_page_ = std::max(max_page_, fresh[i].page);
  }
  it.size = size;
}

void PageLists::move_to_larger(List& list, std::int64_t keep, std::int64_t size) {
  const int room = room_for(size);
  std::vector<std::int64_t>& places = free_[static_cast<std::size_t>(room)];
  std::int64_t place = end_;
  if (places.empty()) {
    end_ += std::int64_t{1} << room;
  } else {
    place = places.back();
    places.pop_back();
  }
  if (keep > 0) moves_.push_back({list.first, place, keep});
  if (list.room >= 0) left_.emplace_back(list.room, list.first);
  list.first = place;
  list.room = room;
}

void PageLists::erase(std::size_t list) {
  if (list >= lists_.size()) return;
  List& it = lists_[list];
  if (it.room >= 0) left_.emplace_back(it.room, it.first);
  it = List();
}

std::size_t PageLists::upload_bytes() const {
  return Upload::bytes_of<PageChange>(changes_.size()) + Upload::bytes_of<ListMove>(moves_.size());
}

void PageLists::add_to(Upload& upload) {
  sent_changes_ = upload.add(std::span<const PageChange>(changes_));
  sent_moves_ = upload.add(std::span<const ListMove>(moves_));
}

void PageLists::begin(cudaStream_t stream) {
  check(cudaStreamWaitEvent(stream, last_use_.get()), "ordering plans");
}

void PageLists::apply(cudaStream_t stream) {
  grow(stream);
  check(launch_change_pages(pages_.data(), sent_moves_, static_cast<int>(moves_.size()),
                            sent_changes_, static_cast<int>(changes_.size()), stream),
        "changing page lists");
  changes_.clear();
  moves_.clear();
  for (const auto& [room, place] : left_) free_[static_cast<std::size_t>(room)].push_back(place);
  left_.clear();
  applied_end_ = end_;
}

void PageLists::end(cudaStream_t stream) {
  check(cudaEventRecord(last_use_.get(), stream), "ordering plans");
}

void PageLists::cancel(cudaStream_t stream) noexcept {
  changes_.clear();
  moves_.clear();
  end_ = applied_end_;
  std::erase_if(left_, [this](const auto& left) { return left.second >= end_; });
  // Other plans may still read the lists: the next change waits for them, too.
  static_cast<void>(cudaStreamWaitEvent(stream, last_use_.get()));
  static_cast<void>(cudaEventRecord(last_use_.get(), stream));
}

/// Allocates all room that was handed out.
void PageLists::grow(cudaStream_t stream) {
  const LocalPage* before = pages_.data();
  const std::size_t bytes = pages_.capacity() * sizeof(LocalPage);
  if (!pages_.reserve(static_cast<std::size_t>(end_)) || bytes == 0) return;
  check(cudaMemcpyAsync(pages_.data(), before, bytes, cudaMemcpyDeviceToDevice, stream),
        "moving page lists");
}

}  // namespace kvmesh::cuda
