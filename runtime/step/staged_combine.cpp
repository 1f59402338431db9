#include "runtime/step/staged_combine.hpp"

#include "comm/combine/rows.hpp"
#include "kvmesh/device_memory.hpp"

namespace kvmesh {
namespace {

// A contiguous copy on the host of a device tensor [tokens, heads, dim] or [tokens, heads].
class HostCopy {
 public:
  explicit HostCopy(const TensorView& device) : device_(device), host_(device) {
    row_bytes_ =
        static_cast<std::size_t>(device.dims == 3 ? device.size(2) : 1) * size_bytes(device.dtype);
    bytes_.resize(static_cast<std::size_t>(device.size(0) * device.size(1)) * row_bytes_);
    host_ = device.dims == 3
                ? TensorView(bytes_.data(), device.dtype,
                             {device.size(0), device.size(1), device.size(2)})
                : TensorView(bytes_.data(), device.dtype, {device.size(0), device.size(1)});
  }

  const TensorView& view() const { return host_; }

  void download() {
    for_rows([](std::byte* device, std::byte* host, std::size_t bytes) {
      copy_bytes(host, device, bytes);
    });
  }
  void upload() {
    for_rows([](std::byte* device, std::byte* host, std::size_t bytes) {
      copy_bytes(device, host, bytes);
    });
  }

 private:
  // All at once where the device tensor has no gaps, else row by row.
  template <class Copy>
  void for_rows(const Copy& copy) {
    auto* device = static_cast<std::byte*>(device_.data);
    const std::size_t element = size_bytes(device_.dtype);
    if (device_.strides == host_.strides) return copy(device, bytes_.data(), bytes_.size());
    std::byte* host = bytes_.data();
    for (std::int64_t token = 0; token < device_.size(0); ++token) {
      for (std::int64_t head = 0; head < device_.size(1); ++head, host += row_bytes_) {
        const std::int64_t at = token * device_.stride(0) + head * device_.stride(1);
        copy(device + static_cast<std::size_t>(at) * element, host, row_bytes_);
      }
    }
  }

  TensorView device_, host_;
  std::size_t row_bytes_;
  std::vector<std::byte> bytes_;
};

}  // namespace

void StagedCombine::operator()(const Partial& mine, const CombineOptions& options,
                               const CombineOutput& output, Stream stream) {
  check_combine(mine, options, output, mesh_->kv_rank().value, mesh_->kv_parallel(),
                DeviceKind::kCuda);
  mesh_->wait(stream, "combine");
  HostCopy o(mine.o), lse(mine.lse), out(output.o);
  o.download();
  lse.download();
  const Partial partial{o.view(), lse.view()};
  if (output.lse.empty()) {
    combiner_(partial, options, {.o = out.view()});
  } else {
    HostCopy out_lse(output.lse);
    combiner_(partial, options, {.o = out.view(), .lse = out_lse.view()});
    out_lse.upload();
  }
  out.upload();
}

}  // namespace kvmesh
