#include "comm/combine/gather/gather_way.hpp"

#include <algorithm>

#include "core/tensors/copy_tensor.hpp"

namespace kvmesh {

TensorView QueryShares::place_of(IndexRange heads) const {
  TensorView place = all;
  const std::int64_t first = heads.begin * all.stride(1);
  place.data =
      static_cast<std::byte*>(all.data) + first * static_cast<std::int64_t>(size_bytes(all.dtype));
  place.shape[1] = heads.size();
  return place;
}

void QueryShares::place_mine(IndexRange heads, Stream stream) const {
  const TensorView place = place_of(heads);
  if (place.data != mine.data) copy_tensor(place, mine, all.device, stream);
}

QueryShares QueryShares::of_batch() const {
  QueryShares batch = *this;
  batch.mine.shape[0] = std::min(mine.shape[0], tokens);
  batch.all.shape[0] = std::min(all.shape[0], tokens);
  return batch;
}

}  // namespace kvmesh
