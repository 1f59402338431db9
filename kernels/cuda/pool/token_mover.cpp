#include "kernels/cuda/pool/token_mover.hpp"

#include "core/cuda/check.hpp"

namespace kvmesh::cuda {
namespace {

PlaneRows rows_of(const TokenPlanes::Plane& plane) {
  const TensorView& view = plane.view;
  const auto bytes = [&](int dim) {
    return view.stride(dim) * static_cast<std::int64_t>(size_bytes(view.dtype));
  };
  PlaneRows rows{.data = static_cast<char*>(view.data),
                 .page_stride = bytes(0),
                 .head_stride = bytes(1),
                 .token_stride = bytes(2),
                 .packed = static_cast<std::int64_t>(plane.packed),
                 .row_bytes = static_cast<std::int32_t>(plane.row_bytes),
                 .unit_bytes = 1};
  const std::int64_t all = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(view.data)) |
                           rows.page_stride | rows.head_stride | rows.token_stride | rows.row_bytes;
  rows.unit_bytes = all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
  return rows;
}

}  // namespace

void TokenMover::copy(const TokenPlanes& planes, std::span<const TokenSlot> slots, bool is_packing,
                      cudaStream_t stream) {
  rows_.clear();
  for (const TokenPlanes::Plane& plane : planes.planes()) rows_.push_back(rows_of(plane));
  packed_.reserve(slots.size() * planes.token_bytes());
  Upload& upload = uploads_[is_packing ? 0 : 1];
  upload.begin(Upload::bytes_of<PlaneRows>(rows_.size()) +
               Upload::bytes_of<TokenSlot>(slots.size()));
  const TokenRowsParams params{.planes = upload.add(std::span<const PlaneRows>(rows_)),
                               .slots = upload.add(slots),
                               .packed = reinterpret_cast<char*>(packed_.data()),
                               .token_bytes = static_cast<std::int64_t>(planes.token_bytes()),
                               .tokens = static_cast<std::int32_t>(slots.size()),
                               .plane_count = static_cast<std::int32_t>(rows_.size()),
                               .heads = static_cast<std::int32_t>(planes.heads()),
                               .is_packing = is_packing};
  upload.send(stream);
  check(launch_token_rows(params, stream), "copying tokens");
}

void TokenMover::move(const TokenPlanes& planes, std::span<const TokenSlot> from,
                      std::span<const TokenSlot> to, cudaStream_t stream) {
  copy(planes, from, true, stream);
  copy(planes, to, false, stream);
}

void TokenMover::pack(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                      std::byte* packed, cudaStream_t stream) {
  copy(planes, slots, true, stream);
  check(cudaMemcpyAsync(packed, packed_.data(), slots.size() * planes.token_bytes(),
                        cudaMemcpyDeviceToHost, stream),
        "copying tokens to the host");
}

void TokenMover::unpack(const TokenPlanes& planes, std::span<const TokenSlot> slots,
                        const std::byte* packed, cudaStream_t stream) {
  packed_.reserve(slots.size() * planes.token_bytes());
  check(cudaMemcpyAsync(packed_.data(), packed, slots.size() * planes.token_bytes(),
                        cudaMemcpyHostToDevice, stream),
        "copying tokens from the host");
  copy(planes, slots, false, stream);
}

}  // namespace kvmesh::cuda
