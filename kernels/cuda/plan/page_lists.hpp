// The local pages of every sequence, on the device. They are changed in place and never sent again.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/cuda/device_array.hpp"
#include "kernels/cuda/common/device_event.hpp"
#include "kernels/cuda/common/upload.hpp"
#include "kernels/cuda/plan/params.hpp"
#include "kvmesh/attention.hpp"

namespace kvmesh::cuda {

/// One page list per sequence, indexed by small numbers that the caller assigns. All lists are in
/// one array, each with room to grow to the next power of two; a list that outgrows its room moves
/// on the device. Plans on different streams may follow one another: each waits for the one before.
class PageLists {
 public:
  /// Removes all but the first `keep` pages of a list (a new list is empty) and adds `fresh`.
  /// REQUIRES: at most once per list between two plans. @throws InvalidArgument.
  void change(std::size_t list, std::int64_t keep, std::span<const LocalPage> fresh);
  /// Empties the list and frees its room.
  void erase(std::size_t list);

  std::int64_t first_page(std::size_t list) const { return at(list).first; }
  std::int64_t size(std::size_t list) const { return at(list).size; }
  /// The highest page that was ever in a list; -1: none.
  std::int32_t max_page() const { return max_page_; }

  /// The calls of a plan, on its stream: `begin`; add_to an upload with upload_bytes() of room;
  /// `apply`; the lists may then be read until `end`. `begin` makes the stream wait for plans that
  /// still read the lists.
  void begin(cudaStream_t stream);
  std::size_t upload_bytes() const;
  void add_to(Upload& upload);
  void apply(cudaStream_t stream);
  void end(cudaStream_t stream);
  /// Ends a plan that failed, after its lists were erased: drops its changes and the room that was
  /// handed out for them.
  void cancel(cudaStream_t stream) noexcept;

  const LocalPage* data() const { return pages_.data(); }
  std::size_t size_bytes() const { return pages_.size_bytes(); }

 private:
  struct List {
    std::int64_t first = 0;
    std::int64_t size = 0;
    int room = -1;  // log2 of its room; -1: none yet
  };
  List at(std::size_t list) const { return list < lists_.size() ? lists_[list] : List(); }
  void move_to_larger(List& list, std::int64_t keep, std::int64_t size);
  void grow(cudaStream_t stream);

  DeviceArray<LocalPage> pages_;
  std::int64_t end_ = 0;          // end of all room that was handed out
  std::int64_t applied_end_ = 0;  // end of the room that applied plans use
  std::vector<List> lists_;
  std::array<std::vector<std::int64_t>, 40> free_;  // free rooms, by log2 of their size
  std::vector<std::pair<int, std::int64_t>> left_;  // rooms that are free once the moves are done
  std::vector<PageChange> changes_;
  std::vector<ListMove> moves_;
  const PageChange* sent_changes_ = nullptr;
  const ListMove* sent_moves_ = nullptr;
  std::int32_t max_page_ = -1;

  DeviceEvent last_use_;
};

}  // namespace kvmesh::cuda
