// The conversion of a partial in base two, on a GPU.
#include "comm/combine/natural_lse.hpp"

#include "core/check.hpp"
#include "core/cuda/check.hpp"
#include "core/cuda/device_scope.hpp"
#include "kvmesh/nccl.hpp"

namespace kvmesh {

Partial to_natural(const Base2Partial& partial, Stream stream) {
  const TensorView &o = partial.o, &lse = partial.lse;
  require(lse.dims == 2 && lse.dtype == Dtype::kFloat32 && lse.device.kind == DeviceKind::kCuda &&
              (lse.size(1) <= 1 || lse.stride(1) == 1) && o.dims == 3 && o.size(0) == lse.size(0) &&
              o.size(1) == lse.size(1),
          "to_natural: no partial on a GPU with contiguous heads: o {}, lse {}", o, lse);
  const DeviceScope scope(lse.device.index);
  check(cuda::launch_make_natural(static_cast<float*>(lse.data), lse.stride(0), lse.size(0),
                                  static_cast<int>(lse.size(1)),
                                  static_cast<cudaStream_t>(stream.handle)),
        "to_natural");
  return {o, lse};
}

}  // namespace kvmesh
