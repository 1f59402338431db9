#include "kernels/cuda/attend/plain/plain_family.hpp"

#include "kernels/cuda/attend/plain/plain_params.hpp"

namespace kvmesh::cuda {
namespace {

DeviceScale device_scale(const BasicRowScale<ConstTensorView>& scale) {
  const ConstTensorView& rows = scale.per_token;
  return {.number = scale.number,
          .per_token = static_cast<const float*>(rows.data),
          .page_stride = rows.stride(0),
          .head_stride = rows.stride(1),
          .token_stride = rows.stride(2)};
}

}  // namespace

DeviceScales device_scales(const ConstKvPool& pool) {
  return {.k = device_scale(pool.k_scale), .v = device_scale(pool.v_scale)};
}

namespace {

class PlainFamily final : public AttendFamily {
 public:
  std::optional<AttendVariant> choose(const AttendCase& what) const override {
    return AttendVariant{.family = this,
                         .name = "plain",
                         .source = "kernels/cuda/attend/plain/attend.cuh",
                         .kernel = "kvmesh_attend_plain",
                         .constants = attend_constants(what),
                         .threads = 128};
  }

  void launch(const jit::Kernel& kernel, const jit::Launch& how, const AttendParams& params,
              const ConstKvPool& pool) const override {
    kernel.launch(how, PlainParams{.attend = params, .scales = device_scales(pool)});
  }
};

}  // namespace

const AttendFamily& plain_family() {
  static const PlainFamily family;
  return family;
}

}  // namespace kvmesh::cuda
