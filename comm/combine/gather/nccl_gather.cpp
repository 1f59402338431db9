// The query gather over NCCL: a message from each rank to each, then copies of the heads to their
// places. Only for builds with NCCL.
#include "comm/combine/gather/gather_way.hpp"
#include "comm/nccl/state.hpp"
#include "core/cuda/device_array.hpp"
#include "core/cuda/device_scope.hpp"
#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {
namespace {

std::size_t bytes_of(const ConstTensorView& view) {
  return static_cast<std::size_t>(view.elements()) * size_bytes(view.dtype);
}

class NcclGather : public GatherWay {
 public:
  explicit NcclGather(NcclGroup& group) : nccl_(&group.state()) {}

  void run(const QueryShares& queries, Stream stream) override;
  std::uint64_t generation() const override { return generation_; }
  std::size_t workspace_bytes() const override {
    return packed_.size_bytes() + received_.size_bytes();
  }

 private:
  ConstTensorView sent(const ConstTensorView& mine, Stream stream);
  std::vector<TensorView> received(const QueryShares& queries);
  void exchange(const ConstTensorView& mine, const std::vector<TensorView>& from, Stream stream);

  NcclGroup::State* nccl_;  // stays where it is when the group is moved
  std::uint64_t generation_ = 0;
  cuda::DeviceArray<std::byte> packed_, received_;
};

/// A captured run sends the messages of its whole tensors, whatever the batch of a replay is.
void NcclGather::run(const QueryShares& queries, Stream stream) {
  nccl_->require_whole(kGatherQueries);
  const DeviceScope scope(nccl_->device);
  const auto heads_of = [&](int rank) { return queries.heads_of(rank, nccl_->size); };
  const int me = nccl_->rank.value;
  const std::vector<TensorView> from = received(queries);
  exchange(sent(queries.mine, stream), from, stream);
  queries.place_mine(heads_of(me), stream);
  for (int peer = 0; peer < nccl_->size; ++peer) {
    const TensorView place = queries.place_of(heads_of(peer));
    const TensorView& message = from[static_cast<std::size_t>(peer)];
    if (peer == me || message.data == place.data) continue;
    copy_tensor(place, message, place.device, stream);
  }
}

/// This rank's heads in one piece: where they lie, or copied.
ConstTensorView NcclGather::sent(const ConstTensorView& mine, Stream stream) {
  if (is_in_one_piece(mine)) return mine;
  generation_ += packed_.reserve(bytes_of(mine)) ? 1 : 0;
  const TensorView packed(packed_.data(), mine.dtype, {mine.size(0), mine.size(1), mine.size(2)},
                          mine.device);
  copy_tensor(packed, mine, mine.device, stream);
  return packed;
}

/// Returns the place for each rank's message: that of its heads if it is in one piece.
std::vector<TensorView> NcclGather::received(const QueryShares& queries) {
  std::byte* room = nullptr;
  std::vector<TensorView> messages;
  for (int rank = 0; rank < nccl_->size; ++rank) {
    const TensorView place = queries.place_of(queries.heads_of(rank, nccl_->size));
    messages.push_back(place);
    if (is_in_one_piece(place)) continue;
    if (room == nullptr) {
      generation_ += received_.reserve(bytes_of(queries.all)) ? 1 : 0;
      room = received_.data();
    }
    messages.back() = {
        room, place.dtype, {place.size(0), place.size(1), place.size(2)}, place.device};
    room += bytes_of(place);
  }
  return messages;
}

void NcclGather::exchange(const ConstTensorView& mine, const std::vector<TensorView>& from,
                          Stream stream) {
  const auto on = static_cast<cudaStream_t>(stream.handle);
  nccl_->grouped(kGatherQueries, [&] {
    ncclResult_t code = ncclSuccess;
    for (int peer = 0; peer < nccl_->size && NcclGroup::State::is_good(code); ++peer) {
      if (peer == nccl_->rank.value) continue;
      const TensorView& message = from[static_cast<std::size_t>(peer)];
      if (bytes_of(mine) > 0) {
        code = ncclSend(mine.data, bytes_of(mine), ncclInt8, peer, nccl_->comm, on);
      }
      if (bytes_of(message) > 0 && NcclGroup::State::is_good(code)) {
        code = ncclRecv(message.data, bytes_of(message), ncclInt8, peer, nccl_->comm, on);
      }
    }
    return code;
  });
}

}  // namespace

std::unique_ptr<GatherWay> make_nccl_gather(NcclGroup& group) {
  return std::make_unique<NcclGather>(group);
}

}  // namespace kvmesh
